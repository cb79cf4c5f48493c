"""How completions are scored: reward functions and their weights, how these are combined, what each one is told.

Floor 0. The tables of `RewardOptions` bear the names of the rewards that read them.
"""

from typing import Annotated, Literal

from pydantic import Field

from posttrain.settings.base import Count, NonNegative, Positive, Settings


class NumericMatchOptions(Settings):
    """Of numeric_match."""

    tolerance: NonNegative = 1e-6
    """How far the number may be from the gold's."""


class LongerThanOptions(Settings):
    """Of longer_than."""

    characters: Annotated[int, Field(ge=0)] = 100
    """Characters that a completion must have more than."""


class LengthBandOptions(Settings):
    """Of length_band."""

    min_length: Annotated[int, Field(ge=0)] = 0
    """Fewest tokens that are paid."""
    max_length: Count | None = None
    """Most tokens that are paid; None takes sampling.max_completion_length."""


class CosineLengthOptions(Settings):
    """Of cosine_length."""

    max_length: Count | None = None
    """Tokens at which the curve ends, and stays; None takes sampling.max_completion_length."""
    right_short: float = 1.0
    """Score of a right answer of no length."""
    right_long: float = 0.5
    """Score of a right answer of max_length."""
    wrong_short: float = -1.0
    """Score of a wrong answer of no length: the shortest are punished most."""
    wrong_long: float = -0.5
    """Score of a wrong answer of max_length."""


class SoftOverlongOptions(Settings):
    """Of soft_overlong."""

    max_length: Count | None = None
    """Tokens from which the punishment is -1; None takes sampling.max_completion_length."""
    buffer: Count | None = None
    """Tokens before max_length over which it grows from 0; None takes a fifth of max_length, DAPO's share."""


class RepetitionOptions(Settings):
    """Of repetition."""

    ngram_size: Count = 3
    """Words in a row that count as one repeated piece."""


class LanguageConsistencyOptions(Settings):
    """Of language_consistency."""

    language: str = "en"
    """Language (ISO 639-1) whose script the words should be in."""


class FormatJsonOptions(Settings):
    """Of format_json."""

    required_keys: list[str] = []
    """Keys that the object must have; empty accepts any JSON."""


class FormatRegexOptions(Settings):
    """Of format_regex."""

    pattern: str = ""
    """Regular expression that the whole completion must match; . matches line ends too."""


class ContainsOptions(Settings):
    """Of contains."""

    phrases: list[str] = []
    """What should be said; upper and lower case are the same."""


class AvoidsOptions(Settings):
    """Of avoids."""

    phrases: list[str] = []
    """What should not be said; upper and lower case are the same."""


class JudgeOptions(Settings):
    """Of judge: a model behind an OpenAI-compatible API that scores completions."""

    base_url: str = "https://api.openai.com/v1"
    """Where the API is; without encryption on this machine only."""
    model: str = ""
    """Model to ask."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; None sends none. The key itself is never stored."""
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    """Score each completion, or compare each with its neighbours in the group, in both orders, and take the wins."""
    rubric: str = "How correct, complete and clear is the answer?"
    """What the judge is to look at."""
    max_score: Positive = 10.0
    """Best score that the judge is asked for, worst is 0; the reward is the part of it that was given."""
    max_tokens: Count = 512
    """Token limit of a reply."""
    max_calls: Count = 1000
    """Calls in the whole run, those before a resume too; when they are spent, the run ends and can be continued."""
    max_total_tokens: Count | None = None
    """Tokens in the whole run, as the API counts them; None counts calls alone."""
    timeout: Positive = 60.0
    """Seconds for one call."""
    max_retries: Annotated[int, Field(ge=0)] = 4
    """How often a call is made again that met a full or failing server."""
    concurrency: Count = 4
    """Calls that are made side by side."""


class RewardOptions(Settings):
    """What the rewards of these names are told."""

    numeric_match: NumericMatchOptions = NumericMatchOptions()
    longer_than: LongerThanOptions = LongerThanOptions()
    length_band: LengthBandOptions = LengthBandOptions()
    cosine_length: CosineLengthOptions = CosineLengthOptions()
    soft_overlong: SoftOverlongOptions = SoftOverlongOptions()
    repetition: RepetitionOptions = RepetitionOptions()
    language_consistency: LanguageConsistencyOptions = LanguageConsistencyOptions()
    format_json: FormatJsonOptions = FormatJsonOptions()
    format_regex: FormatRegexOptions = FormatRegexOptions()
    contains: ContainsOptions = ContainsOptions()
    avoids: AvoidsOptions = AvoidsOptions()
    judge: JudgeOptions = JudgeOptions()


class RewardWorkerSettings(Settings):
    """The processes in which the functions of reward_file run, and format_regex: what hangs there can be killed."""

    deadline: Positive = 10.0
    """Seconds for one call on a whole step's completions; what takes longer is killed and found out one by one."""
    processes: Count = 1
    """Processes of each reward; with more, the prompts of a step are shared out among them."""
    max_subprocesses: Count = 64
    """Processes that a reward function may have started at a time."""
    memory_gb: Positive | None = None
    """Memory that each process may take; None sets no limit."""


class RewardSettings(Settings):
    """How completions are scored."""

    rewards: dict[str, float] = {"r1_zero": 1.0}
    """Reward functions and their weights; a weight of 0 only watches. `posttrain rewards list` says what there is."""
    reward_file: str | None = None
    """A Python file whose public functions are rewards too; it is trusted, and run in processes of its own."""
    reward_combination: Literal["sum", "normalized_sum", "gated"] = "sum"
    """Weighted sum; sum of parts that were each normalised in their group (GDPO); sum paid only with reward_gate."""
    reward_gate: str | None = None
    """The reward that must be above 0 for the others to be paid, with reward_combination gated."""
    reward_options: RewardOptions = RewardOptions()
    reward_workers: RewardWorkerSettings = RewardWorkerSettings()
