"""What a stage would make of some rows, before it is started: their faults, lengths, and one of them as it is trained.

Floor 6: reads rows and tokenizers; loads no model and writes no file.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from posttrain.data.chat import describe, render_prompt, render_training_tree, token_length
from posttrain.data.files import LEFT_OUT
from posttrain.data.pairs import render_preference
from posttrain.data.rows import Kind, Row
from posttrain.data.sources import after_examples, place_of, require_kind, scan_rows
from posttrain.records import Prompt, TokenTree
from posttrain.settings import DataSettings, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAGE_KINDS: dict[str, tuple[Kind, ...]] = {
    "sft": ("prompt_completion", "messages", "text"),
    "rm": ("preference",),
    "dpo": ("preference", "unpaired"),
    "grpo": ("prompt",),
    "ppo": ("prompt",),
}
QUANTILES = {"shortest": 0.0, "median": 0.5, "95%": 0.95, "longest": 1.0}


def check_rows(data: DataSettings, *, stage: str, model: str | None = None) -> dict[str, Any]:
    """Return how many rows a stage could use, what is wrong with the others, and, given a model, lengths in tokens.

    `malformed` counts the rows that make a stage refuse the source beyond `max_bad_rows`; the other faults are left out
    and told. Raises DataError where the rows are of a kind that the stage cannot use, or of none.
    """
    kinds = STAGE_KINDS[stage]
    scan = scan_rows(data, seed=0, kinds=kinds)
    require_kind(scan.rows, kinds, stage)
    rows = after_examples(scan.rows, data, seed=0, kinds=kinds)
    report: dict[str, Any] = {
        "source": place_of(data),
        "stage": stage,
        "usable": len(rows),
        "malformed": scan.tally.bad_rows(),
        "kinds": dict(Counter(row.kind for row in rows)),
        "faults": {
            str(fault): {"rows": count, "left_out": fault in LEFT_OUT, "first": scan.tally.places[fault]}
            for fault, count in sorted(scan.tally.counts.items())
        },
    }
    if model is not None and rows:
        render = _renderer(stage, _tokenizer(model))
        lengths = sorted(token_length(render(row)) for row in rows)
        tokens = {name: lengths[round(share * (len(lengths) - 1))] for name, share in QUANTILES.items()}
        report["tokens"] = tokens | {"over_max_length": sum(length > data.max_length for length in lengths)}
    return report


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield a report as lines to print."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report["kinds"].items())
    yield f"{report['source']}: {report['usable']} rows for {report['stage']}{f' ({kinds})' if kinds else ''}"
    for fault, found in report["faults"].items():
        more = ", ..." if found["rows"] > len(found["first"]) else ""
        yield f"  {found['rows']} {'left out' if found['left_out'] else 'malformed'}: {fault}"
        yield f"    {', '.join(found['first'])}{more}"
    if tokens := report.get("tokens"):
        yield "  tokens: " + ", ".join(f"{name} {tokens[name]}" for name in QUANTILES)
        if tokens["over_max_length"]:
            yield f"  {tokens['over_max_length']} longer than max_length: a stage drops them"


def show_rows(data: DataSettings, *, stage: str, model: str, count: int) -> Iterator[str]:
    """Yield the first rows as a stage would see them: each run of tokens with its mark, trained or not."""
    kinds = STAGE_KINDS[stage]
    rows = scan_rows(data.model_copy(update={"rows": count}), seed=0, kinds=kinds).rows
    require_kind(rows, kinds, stage)
    rows = after_examples(rows, data, seed=0, kinds=kinds)
    tokenizer = _tokenizer(model)
    render = _renderer(stage, tokenizer)
    for row in islice(rows, count):
        rendered = render(row)
        yield f"{row.origin}, {row.kind}, {token_length(rendered)} tokens"
        if isinstance(rendered, Prompt):
            yield from (f"  | {line}" for line in str(tokenizer.decode(list(rendered.ids))).splitlines())
        else:
            yield from (f"  {line}" for line in describe(rendered, tokenizer).splitlines())
        yield from (f"  column {name}: {value!r}" for name, value in row.columns.items())


def _renderer(stage: str, tokenizer: "PreTrainedTokenizerBase") -> Callable[[Row], Prompt | TokenTree]:
    if stage in ("grpo", "ppo"):
        return lambda row: render_prompt(row, tokenizer)
    if stage == "sft":
        return lambda row: render_training_tree(row, tokenizer)
    return lambda row: render_preference(row, tokenizer)


def _tokenizer(model: str) -> "PreTrainedTokenizerBase":
    from posttrain.models.lm import load_tokenizer

    return load_tokenizer(ModelSettings(name_or_path=model))
