"""What may fail in a reward on single completions, and for how long a run goes on with it.

Floor 3. A completion on which a part failed has no reward at all: it stays out of the loss and out of the baseline.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import RewardError
from posttrain.rewards.arguments import completion_text, prompt_text

FAILED_SHARE, FAILED_BATCHES = 0.05, 3  # more of a batch, so many batches in a row: then it is no accident
SHOWN_CHARACTERS = 200

Tell = Callable[[str, str], None]  # the name of an event, and a sentence


@dataclass(frozen=True, slots=True)
class Failed:
    """Stands where a score should: the function raised, hung or died there, or the judge did not answer."""

    reason: str


class Tolerant:
    """A reward function that may fail on single completions: told once, ended where it does not stop."""

    def __init__(self, name: str, function: Callable[..., Sequence[Any]], tell: Tell) -> None:
        self._name, self._function, self._tell = name, function, tell
        self._told = False
        self._bad_batches = 0

    def rehearse(self, arguments: Mapping[str, list[Any]]) -> None:
        """Call it before anything is paid for; raises RewardError for the first failure."""
        for place, value in enumerate(self._function(**arguments)):
            if isinstance(value, Failed):
                raise RewardError(
                    f"reward {self._name} {value.reason}\n  tried at the start {_place(arguments, place)}"
                )

    def __call__(self, **arguments: list[Any]) -> Sequence[Any]:
        """Return what the function returns; raises RewardError where it failed too often, batch after batch."""
        values = self._function(**arguments)
        failures = [(place, value) for place, value in enumerate(values) if isinstance(value, Failed)]
        lasting = len(failures) > FAILED_SHARE * len(values)
        self._bad_batches = self._bad_batches + 1 if lasting else 0
        if not failures:
            return values
        place, first = failures[0]
        count = f"failed on {len(failures)} of {len(values)} completions"
        message = f"reward {self._name} {count}; the first: it {first.reason}\n  {_place(arguments, place)}"
        if self._bad_batches >= FAILED_BATCHES:
            raise RewardError(f"{message}\n  more than {FAILED_SHARE:.0%} of {FAILED_BATCHES} batches in a row")
        if not self._told:
            self._tell(
                "reward_failed", f"{message}\n  such completions are left out; rewards/{self._name}/failed counts"
            )
            self._told = True
        return values


def _place(arguments: Mapping[str, Sequence[Any]], place: int) -> str:
    prompt, completion = prompt_text(arguments["prompts"][place]), completion_text(arguments["completions"][place])
    row = f"row {arguments['prompt_id'][place]}, " if "prompt_id" in arguments else ""
    return f"on {row}prompt {_shown(prompt)}, completion {_shown(completion)}"


def _shown(text: str) -> str:
    return repr(text) if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]!r}..."
