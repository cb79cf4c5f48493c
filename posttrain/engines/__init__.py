"""The engines that generate completions: their protocol, and the dict from name to constructor.

Floor 2; importing it loads no engine and no torch.
"""

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Protocol

from posttrain.records import Completion, Prompt
from posttrain.settings import EngineSettings, SamplingSettings

if TYPE_CHECKING:
    from posttrain.models.lm import LoadedModel
    from posttrain.models.logprobs import Model


class Interrupted(Exception):
    """`should_stop` said yes during `generate`: what is not in `done` is lost, the engine stays usable."""


class Engine(Protocol):
    """What generates completions; `tests/engines/test_contract.py` says what every engine must do."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        *,
        num_samples: int,
        seeds: Sequence[Sequence[int]],
        done: MutableMapping[tuple[int, int], Completion] | None = None,
    ) -> list[list[Completion]]:
        """Return `num_samples` completions of each prompt, in order; `seeds` has a seed for each of them.

        `done` has those that are there already, by place of the prompt and of the sample, which are not made again;
        each that ends is added to it at once.

        A completion depends on its prompt, the sampling settings, its seed and the weights, and on nothing else.
        Raises DataError or ModelError for a request that cannot be served, before anything runs; Interrupted when
        `should_stop` says so, which is asked before every decoding step.
        """
        ...

    def load_weights(self, model: "Model") -> None:
        """Sample from the weights of `model` (with its adapters) from now on; nothing computed before is reused."""
        ...

    def close(self) -> None:
        """Free the engine's memory; it cannot generate afterwards."""
        ...


def _native(policy: "LoadedModel", settings: EngineSettings, should_stop: Callable[[], bool]) -> Engine:
    from posttrain.engines.native import NativeEngine

    return NativeEngine(policy, settings, should_stop)


ENGINES: dict[str, Callable[["LoadedModel", EngineSettings, Callable[[], bool]], Engine]] = {"native": _native}
"""Constructors by name; each takes the model to sample from, the settings, and `should_stop`."""
