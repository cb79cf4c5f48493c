"""The records that pass between floors: prompts, completions, rollouts and their trees.

Floor 0: frozen dataclasses without torch. Entry t of a per-token tuple belongs to token t.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict


class Message(TypedDict):
    """One turn of a conversation, as chat templates read it."""

    role: str
    content: str


class StopReason(StrEnum):
    """Why a completion ended."""

    EOS = "eos"  # one of the model's end-of-sequence ids was sampled; it is the last id
    STOP_STRING = "stop_string"  # a stop string appeared; its tokens are kept, its text is cut off
    LENGTH = "length"  # the token limit was reached: the completion is truncated


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model and the rewards see it."""

    id: str  # stable across runs: a hash of the row's content
    ids: tuple[int, ...]  # never empty
    content: str | tuple[Message, ...]  # as the dataset gave it
    columns: Mapping[str, Any]  # the row's further columns, passed to rewards and tasks


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled completion, as an engine returns it."""

    ids: tuple[int, ...]  # with the end-of-sequence id when one was sampled
    engine_logprobs: tuple[float, ...]  # of each id, at the sampling temperature, over the whole vocabulary
    stop_reason: StopReason
    text: str  # decoded, without special tokens and without the stop string


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with its scores and the reward they make, None when it could not be scored."""

    completion: Completion
    scores: Mapping[str, float | None]
    reward: float | None
    policy_version: int
    failed: tuple[str, ...] = ()  # the scorers that raised, hung or did not answer


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt with the rollouts that branch from it."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A completion as training sees it: ids, and a mask that is 1 on trained tokens."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A prompt (never empty) with the branches to train on; prompt tokens are never trained."""

    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]
