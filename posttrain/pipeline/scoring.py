"""Completions scored by a saved reward model: rows of a file, rollouts of a run, or what was typed.

Floor 6: model, renderer and reports together; writes one JSONL file where it is asked for.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from posttrain.data.chat import token_length
from posttrain.data.pairs import render_completion
from posttrain.data.prompts import Text
from posttrain.data.rows import Kind, Row
from posttrain.data.sources import load_rows, require_kind
from posttrain.errors import DataError
from posttrain.evals.bias import bias_report, number_of_each
from posttrain.evals.pairs import pair_report, verdict
from posttrain.models.files import reward_report
from posttrain.models.lm import load_reward_model
from posttrain.records import Message, StopReason
from posttrain.rewards.learned import score_trees
from posttrain.runs import durable
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import DataSettings, ModelSettings

KINDS: tuple[Kind, ...] = ("preference", "unpaired", "prompt_completion", "messages")
SHOWN_PLACES, SHOWN_ENDS, SHOWN_CHARACTERS = 5, 3, 60
LABELS = "the labels themselves"
NO_COLUMNS = {"prompt", "completion", "messages", "completion_ids", "engine_logprobs"}  # of rollouts
ROLLOUT_COLUMNS = {"prompt_id", "completion", "stop_reason", "policy_version"}  # by these a file of rollouts is known


@dataclass(frozen=True, slots=True)
class Candidate:
    """A completion to score, as a row with one; `side` is chosen or rejected where it is one of a pair."""

    row: Row
    side: str | None = None
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its score, None where it is too long, and its length in tokens, its end included."""

    candidate: Candidate
    score: float | None
    tokens: int
    prompt: int  # the same number for the same prompt


def reward_model_of(name: str) -> str:
    """Return a reward model's directory where its stage's was named, else the name as it is."""
    artifact = Path(name) / "artifact"
    return str(artifact) if artifact.is_dir() else name


def candidates_of(source: str, data: DataSettings) -> list[Candidate]:
    """Return the completions of a stage with rollouts, of a file of them, or of rows in any schema that has some."""
    path = Path(source)
    if (path / "rollouts").is_dir():
        files = sorted((path / "rollouts").glob("step-*.parquet"))
        if not files or not _holds_rollouts(files[0]):
            raise DataError(f"{path} has no rollouts with their whole prompts: expected the directory of a GRPO stage")
        return [each for file in files for each in _rollouts(file)]
    if path.suffix == ".parquet" and path.is_file() and _holds_rollouts(path):
        return list(_rollouts(path))
    rows = load_rows(data, seed=0, kinds=KINDS)
    require_kind(rows, KINDS, "score")
    return [candidate for row in rows for candidate in _candidates(row)]


def pasted(prompt: str, completions: Sequence[str], *, chat: bool) -> list[Candidate]:
    """Return typed completions of a typed prompt, as they stand or as turns of the chat template."""
    if not prompt or not all(completions):
        raise DataError("the prompt or a completion is empty")
    rows = []
    for number, text in enumerate(completions, start=1):
        row = Row(f"typed-{number}", "prompt_completion", f"completion {number}", prompt=prompt, completion=text)
        if chat:
            user, reply = Message(role="user", content=prompt), Message(role="assistant", content=text)
            row = replace(row, prompt=(user,), completion=(reply,))
        rows.append(row)
    return [Candidate(row) for row in rows]


def score_candidates(
    reward_model: ModelSettings,
    candidates: Sequence[Candidate],
    *,
    max_length: int,
    max_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """Return the candidates with their scores, in order; those over `max_length` tokens, or the context, have none."""
    loaded = load_reward_model(reward_model)
    limit = loaded.fit(max_length)
    trees = [render_completion(each.row, loaded.tokenizer, ended=each.ended) for each in candidates]
    kept = [bool(tree.branches[0].ids) and token_length(tree) <= limit for tree in trees]
    fitting = [tree for tree, fits in zip(trees, kept, strict=True) if fits]
    scores = iter(score_trees(loaded, fitting, max_tokens, on_progress=on_progress))
    prompts = number_of_each([tree.prompt_ids for tree in trees])
    return [
        Scored(candidate, next(scores) if fits else None, len(tree.branches[0].ids), int(prompt))
        for candidate, tree, fits, prompt in zip(candidates, trees, kept, prompts, strict=True)
    ]


def report_of(reward_model: str, place: str, scored: Sequence[Scored], *, correct: str | None = None) -> dict[str, Any]:
    """Return what the scores say, as plain JSON: their spread, of pairs how well they order them, and their biases.

    `correct` names a column that says how right a completion is. Pairs with a side that is too long are left out of
    everything but its count.
    """
    unscored = [each for each in scored if each.score is None]
    whole = [each for each in scored if each.score is not None]
    pairs = [pair for pair in _pairs(scored) if all(each.score is not None for each in pair)]
    if scored[0].candidate.side is not None:
        whole = [each for pair in pairs for each in pair]
    if not whole:
        raise DataError(
            f"{place}: none of {len(scored)} completions could be scored; the first has {scored[0].tokens} tokens",
            fix="--max_length 4096",
        )
    scores = np.array([each.score for each in whole])
    lengths = np.array([each.tokens for each in whole])
    known = reward_report(reward_model)
    report: dict[str, Any] = {
        "reward_model": reward_model,
        "own_verdict": None if known is None else known["verdict"],
        "source": place,
        "completions": len(whole),
        "unscored": {"count": len(unscored), "first": [_place(each) for each in unscored[:SHOWN_PLACES]]},
        "scores": {
            "mean": float(scores.mean()),
            "std": float(scores.std()),
            "min": float(scores.min()),
            "max": float(scores.max()),
        },
    }
    judged, judge = _judged(whole, correct)
    if pairs:
        report |= pair_report(scores[0::2], scores[1::2], lengths[0::2], lengths[1::2])
        report["verdict"] = verdict(report, what="pairs")
    texts = [text_of(each.candidate.row.completion) for each in whole]
    report["bias"] = bias_report(scores, lengths, texts, np.array([each.prompt for each in whole]), judged, judge=judge)
    order = np.argsort(scores, kind="stable")
    report["lowest"] = [_shown(whole[index]) for index in order[:SHOWN_ENDS]]
    report["highest"] = [_shown(whole[index]) for index in order[::-1][:SHOWN_ENDS]]
    return report


def write_scores(out: Path, scored: Sequence[Scored]) -> None:
    """Write one line of JSON for each row, a pair's two scores in one, with the row's further columns."""
    groups: Sequence[Sequence[Scored]] = _pairs(scored) or [[each] for each in scored]
    lines = (json.dumps(_line(group), ensure_ascii=False, default=_thawed) for group in groups)
    durable.make_directory(out.parent)
    durable.write_file(out, "".join(f"{line}\n" for line in lines).encode())


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a report as lines to print."""
    spread = report["scores"]
    yield (
        f"{report['source']}: {report['completions']} completions scored {spread['min']:.3g} to {spread['max']:.3g}, "
        f"mean {spread['mean']:.3g}, standard deviation {spread['std']:.3g}"
    )
    if count := report["unscored"]["count"]:
        places = ", ".join(report["unscored"]["first"])
        yield f"  {count} not scored, too long or empty: {places}{', ...' if count > SHOWN_PLACES else ''}"
    yield f"  the reward model's own report: {report['own_verdict'] or 'none came with it'}"
    if "verdict" in report:
        yield f"  {report['verdict']}"
    bias = report["bias"]
    yield from (f"  bias: {finding}" for finding in bias["findings"])
    if bias["length"] not in bias["findings"]:
        yield f"  {bias['length']}"
    for end in ("highest", "lowest"):
        yield f"  {end}"
        yield from (f"    {each['score']:8.3f}  {each['place']}  {each['text']}" for each in report[end])


def text_of(completion: Text | None) -> str:
    """Return what the assistant says in a completion."""
    if isinstance(completion, str) or completion is None:
        return completion or ""
    return "\n\n".join(turn["content"] for turn in completion if turn["role"] == "assistant")


def excerpt(scored: Scored) -> str:
    """Return the beginning of a completion, in one line."""
    text = " ".join(text_of(scored.candidate.row.completion).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def _candidates(row: Row) -> Iterator[Candidate]:
    if row.kind == "preference":
        for side, completion in (("chosen", row.chosen), ("rejected", row.rejected)):
            yield Candidate(replace(row, kind="prompt_completion", completion=completion), side)
    elif row.messages is not None:
        last = max(at for at, turn in enumerate(row.messages) if turn["role"] == "assistant")
        prompt, reply = row.messages[:last], row.messages[last : last + 1]
        yield Candidate(replace(row, kind="prompt_completion", messages=None, prompt=prompt, completion=reply))
    else:
        yield Candidate(row)


def _holds_rollouts(file: Path) -> bool:
    return set(pyarrow.parquet.read_schema(file).names) >= ROLLOUT_COLUMNS


def _rollouts(file: Path) -> Iterator[Candidate]:
    for number, rollout in enumerate(read_rollouts(file), start=1):
        columns = {name: value for name, value in rollout.items() if name not in NO_COLUMNS}
        messages, completion = rollout["messages"], rollout["completion"]
        row = Row(
            id=f"{rollout['prompt_id']}-{rollout['sample']}",
            kind="prompt_completion",
            origin=f"{file}:row {number}",
            prompt=rollout["prompt"] if messages is None else tuple(json.loads(messages)),
            completion=completion if messages is None else (Message(role="assistant", content=completion),),
            columns=columns,
        )
        yield Candidate(row, ended=rollout["stop_reason"] != StopReason.LENGTH)


def _pairs(scored: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """Return chosen and rejected of each pair; none where the candidates are no pairs."""
    if not scored or scored[0].candidate.side is None:
        return []
    return list(zip(scored[0::2], scored[1::2], strict=True))


def _judged(scored: Sequence[Scored], correct: str | None) -> tuple[np.ndarray | None, str]:
    """Return how good each completion is known to be, and what says so."""
    of_pairs = scored[0].candidate.side is not None
    if correct is not None and of_pairs:
        raise DataError(f"the completions of pairs are judged as chosen or rejected, not by a column {correct}")
    if correct is not None:
        return np.array([_number(each.candidate.row, correct) for each in scored]), f"{correct} itself"
    if of_pairs:
        return np.array([float(each.candidate.side == "chosen") for each in scored]), LABELS
    labels = [each.candidate.row.label for each in scored]
    return (None if None in labels else np.array(labels, dtype=float)), LABELS


def _number(row: Row, column: str) -> float:
    value = row.columns.get(column)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = ", ".join(row.columns) or "none"
        raise DataError(
            f"{row.origin}: column {column} should be a number of how right it is, not {value!r}; there are {found}"
        ) from None


def _line(group: Sequence[Scored]) -> dict[str, Any]:
    row = group[0].candidate.row
    line: dict[str, Any] = {**row.columns, "row": row.origin, "prompt": row.prompt}
    if row.label is not None:
        line["label"] = row.label
    for each in group:
        side = each.candidate.side
        of_side = "" if side is None else f"{side}_"  # score_chosen would make it a row of UltraFeedback's format
        line |= {
            side or "completion": each.candidate.row.completion,
            f"{of_side}score": each.score,
            f"{of_side}tokens": each.tokens,
        }
    return line


def _thawed(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _place(scored: Scored) -> str:
    side = scored.candidate.side
    return scored.candidate.row.origin if side is None else f"{scored.candidate.row.origin} ({side})"


def _shown(scored: Scored) -> dict[str, Any]:
    return {"score": scored.score, "tokens": scored.tokens, "place": _place(scored), "text": excerpt(scored)}
