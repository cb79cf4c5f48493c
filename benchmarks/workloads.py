"""What is measured: each workload by name, with the bars it is held to, and the curves.

Plain data: imports neither side. A workload is one step of a stage, or one call of an engine.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from benchmarks.shapes import SHAPES, Shape

Kind = Literal["sft", "rm", "dpo", "grpo", "ppo", "generate", "forward_backward"]
SMOL, QWEN = "SmolLM2-135M", "Qwen2.5-0.5B"
LEARNING_RATE = 1e-5  # of both sides
GREEDY_TOKENS = 16  # of the step in which both sides' generation is compared


@dataclass(frozen=True, slots=True)
class Bars:
    """What a result is held to; None where nothing is."""

    speedup: float | None = None  # at least: the peer's seconds over ours
    memory: float | None = None  # at most: our peak over the peer's
    gigabytes: float | None = None  # at most: our peak
    peak_share: float | None = None  # at least: our share of the machine's matrix peak
    skew: float | None = None  # at most: our seconds a token over those of the workload without skew


@dataclass(frozen=True, slots=True)
class Workload:
    """One step's work."""

    name: str
    kind: Kind
    shape: str = SMOL
    rows: int = 8  # rows, pairs or prompts of a step
    num_samples: int = 1  # completions of each prompt
    completion_length: int = 64  # of sampled completions, in tokens; with skew their mean
    longest: int | None = None  # None: every completion has completion_length; else the longest of a skewed draw
    num_iterations: int = 1  # updates on each batch of rollouts
    prompt_length: int | None = None  # tokens; None takes the rows' own prompts
    vocab: int | None = None  # None takes the shape's
    load_in_4bit: bool = False  # the base, under its adapter
    kl_coef: float = 0.0  # of the policy stages; above 0 they have a reference
    critic: str = "auto"  # of ppo: its kind
    micro_batch_tokens: int = 1024  # our token budget of one forward
    repeats: int = 5  # counted steps of each side
    bars: Bars = field(default_factory=Bars)

    @property
    def model_shape(self) -> Shape:
        """Return the shape with this workload's vocabulary."""
        shape = SHAPES[self.shape]
        return replace(shape, name=f"{shape.name}-{self.vocab}", vocab=self.vocab) if self.vocab else shape

    @property
    def max_completion_length(self) -> int:
        """Return the longest completion that is sampled."""
        return self.longest or self.completion_length

    @property
    def sequences(self) -> int:
        """Return the completions of a step."""
        return self.rows * self.num_samples

    @property
    def end_ids(self) -> range:
        """Return the ids that end a completion: as many as give the lengths their mean, for logits are near uniform.

        Without skew they are none: no completion ends early.
        """
        vocab = self.model_shape.vocab
        if self.longest is None:
            return range(vocab, vocab)
        return range(vocab - round(vocab * end_rate(self.completion_length, self.longest)), vocab)

    def to_json(self) -> dict[str, Any]:
        """Return the workload as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Workload":
        """Return the workload that `to_json` wrote."""
        return cls(**{**values, "bars": Bars(**values["bars"])})


def end_rate(mean: float, longest: int) -> float:
    """Return the chance to end at each token for which lengths, cut at `longest`, have this mean: 1 <= mean <= longest.

    Lengths are geometric: E[min(L, longest)] = (1 - (1 - p)^longest) / p, which falls with p.
    """
    low, high = 1e-9, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if (1 - (1 - middle) ** longest) / middle > mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2


WORKLOADS = [
    Workload("sft 8 rows", "sft", bars=Bars(speedup=2)),
    Workload("rm 8 pairs", "rm", bars=Bars(speedup=3)),
    Workload("dpo 8 pairs", "dpo", bars=Bars(speedup=5, memory=1 / 5)),
    Workload("dpo 8 pairs, 4 bits", "dpo", load_in_4bit=True),
    Workload("grpo 4x4x64", "grpo", rows=4, num_samples=4, bars=Bars(speedup=5, memory=1 / 4)),
    Workload("grpo 2x4x64, two updates", "grpo", rows=2, num_samples=4, num_iterations=2),
    Workload("grpo 4x8x128", "grpo", rows=4, num_samples=8, completion_length=128, bars=Bars(speedup=5, memory=1 / 4)),
    Workload("generate 16x64", "generate", rows=4, num_samples=4, bars=Bars(speedup=4)),
    Workload("generate 64x64", "generate", rows=8, num_samples=8, bars=Bars(speedup=4)),
    Workload(
        "generate 64x64, skewed to 256", "generate", rows=8, num_samples=8, longest=256, repeats=3, bars=Bars(skew=1.3)
    ),
    Workload(
        "forward and backward, 2048 tokens",
        "forward_backward",
        rows=8,
        prompt_length=128,
        completion_length=128,
        micro_batch_tokens=2048,
        bars=Bars(peak_share=0.5),
    ),
    Workload("sft 4 rows", "sft", QWEN, rows=4, repeats=3),
    Workload("dpo 4 pairs", "dpo", QWEN, rows=4, repeats=3),
    Workload("dpo 4 pairs, 4 bits", "dpo", QWEN, rows=4, repeats=3, load_in_4bit=True),
    Workload("generate 16x64", "generate", QWEN, rows=4, num_samples=4, repeats=3),
    Workload(
        "grpo 2x8x128", "grpo", QWEN, rows=2, num_samples=8, completion_length=128, repeats=3, bars=Bars(gigabytes=6)
    ),
]
QUICK = ("sft 8 rows", "grpo 4x4x64", "generate 16x64")


@dataclass(frozen=True, slots=True)
class Curve:
    """A cost against a size."""

    name: str
    axis: str
    points: dict[int, Workload]
    slower: bool  # whether trees or the chunked head must make ours grow more slowly than the peer's


def _curve(name: str, axis: str, base: Workload, changes: dict[int, dict[str, Any]], *, slower: bool) -> Curve:
    points = {x: replace(base, name=f"{name} {x}", **change) for x, change in changes.items()}
    return Curve(name, axis, points, slower)


_STEP = Workload("", "grpo", rows=1, num_samples=8, completion_length=32, repeats=2)
CURVES = [
    _curve(
        "generation by group size",
        "completions of one prompt of 512 tokens, 32 tokens each",
        replace(_STEP, kind="generate", prompt_length=512),
        {size: {"num_samples": size} for size in (1, 2, 4, 8, 16, 32)},
        slower=True,
    ),
    _curve(
        "grpo by group size",
        "completions of one prompt, 32 tokens each",
        _STEP,
        {size: {"num_samples": size} for size in (2, 4, 8, 16, 32)},
        slower=True,
    ),
    _curve(
        "grpo by prompt length",
        "tokens of the prompt of 8 completions of 32 tokens",
        _STEP,
        # a micro-batch holds the tree, so that its prompt is computed once
        {size: {"prompt_length": size, "micro_batch_tokens": max(1024, size + 256)} for size in (64, 256, 1024, 2048)},
        slower=True,
    ),
    _curve(
        "grpo by vocabulary",
        "entries of the vocabulary, 8 completions of 32 tokens",
        _STEP,
        {size: {"vocab": size} for size in (8_192, 32_768, 65_536, 151_936)},
        slower=True,
    ),
    _curve(
        "grpo by skew",
        "longest completion; the mean is 32 tokens",
        _STEP,
        {32: {}} | {longest: {"longest": longest} for longest in (64, 128, 256)},
        slower=True,
    ),
]
