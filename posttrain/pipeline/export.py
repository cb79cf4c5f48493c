"""A trained model as one plain model for other programs: the adapter merged into its base, and the result checked.

Floor 6. What was trained on a base in 4 bits is merged into the base as it was: rounding weights to 4 bits once more
after the merge would lose much of what was learned.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError, ModelError
from posttrain.models.files import is_adapter
from posttrain.models.lm import LoadedModel, export_merged, load_model
from posttrain.models.logprobs import plain_model
from posttrain.runs.artifact import publish_artifact
from posttrain.settings import ModelSettings

PROBE = (
    "User: Ann buys 3 boxes of 12 pencils and gives 7 pencils to each of 4 friends. How many pencils are left?\n"
    "Assistant: She has 3 * 12 = 36 pencils and gives away 4 * 7 = 28, so 36 - 28 = 8 pencils are left. "
    "The sky over the harbour was grey, and nobody spoke.\ndef square(x):\n    return x * x\n"
)
PROBED_TOKENS = 256
MOST_DIVERGENCE = 0.05  # nats a token between adapter and merged model: beyond any rounding of weights to bfloat16


def export(
    model: str, out: Path, *, dtype: Literal["float32", "bfloat16"], compare_4bit: bool = False
) -> Mapping[str, Any]:
    """Write a model, with its adapter merged, to `out`, and return how its next-token distributions moved by that.

    `model` is an adapter folder, a model, or the directory of a finished stage. Divergences are means over the tokens
    of a fixed text, in nats, of distributions computed in float32: `kl` of the merged model, read back from its files,
    from the adapter on its base, which is what rounding to `dtype` does; with `compare_4bit`, `kl_4bit` from the
    adapter on its base in 4 bits.

    Raises ModelError, and writes nothing, where the merged model is another one.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already", fix=f"--out {out.with_name(f'{out.name}-2')}")
    source = str(artifact) if (artifact := Path(model) / "artifact").is_dir() else model
    report: dict[str, Any] = {
        "model": source,
        "out": str(out),
        "dtype": dtype,
        "merged_adapter": is_adapter(Path(source)),
    }
    before = _log_distributions(source)

    def write(directory: Path) -> None:
        export_merged(load_model(ModelSettings(name_or_path=source, dtype=dtype), seed=0, trainable=False), directory)
        merged = _log_distributions(str(directory))
        report.update(_comparison("kl", before, merged))
        if compare_4bit:
            report.update(_comparison("kl_4bit", _log_distributions(source, load_in_4bit=True), merged))
        if not report["kl"] <= MOST_DIVERGENCE:
            raise ModelError(
                f"the merged model is not the one that was trained: {report['kl']:.3g} nats a token away, where "
                f"rounding explains {MOST_DIVERGENCE:g} at most; {out} was not written"
            )

    publish_artifact(out, write, {"kind": "export", "source": source})
    return report


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a report as lines to print."""
    merged = "the adapter merged into its base" if report["merged_adapter"] else "the model"
    yield f"{report['out']}: {merged}, in {report['dtype']}"
    sources = {"kl": "what was read", "kl_4bit": "the adapter on its base in 4 bits"}
    for name, source in sources.items():
        if name in report:
            same = report[f"{name}_same_argmax"]
            yield f"  {report[name]:.2g} nats a token from {source}; {same:.1%} of the likeliest tokens are the same"


def _log_distributions(source: str, *, load_in_4bit: bool = False) -> Tensor:
    """Return the log-probs `(T, V)` of every next token of the probe, computed in float32."""
    settings = ModelSettings(name_or_path=source, dtype="float32", layout="rows", load_in_4bit=load_in_4bit)
    return _of_probe(load_model(settings, seed=0, trainable=False))


@torch.inference_mode()
def _of_probe(loaded: LoadedModel) -> Tensor:
    plain = plain_model(loaded.model)
    plain.set_attn_implementation("eager")
    ids = loaded.tokenizer(PROBE, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :PROBED_TOKENS]
    logits = plain(ids.to(loaded.device), use_cache=False).logits[0]
    return logits.float().log_softmax(dim=-1).cpu()


def _comparison(name: str, before: Tensor, after: Tensor) -> dict[str, float]:
    """Return the divergence KL(before || after), and the share of tokens whose likeliest successor stays the same."""
    divergence = (before.exp() * (before - after)).sum(dim=-1).mean()
    same = (before.argmax(dim=-1) == after.argmax(dim=-1)).float().mean()
    return {name: max(0.0, float(divergence)), f"{name}_same_argmax": float(same)}
