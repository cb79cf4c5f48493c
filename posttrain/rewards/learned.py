"""A trained reward model as a reward function, and the scores that it gives to trees.

Floor 3. It reads prompt and completion in its own tokens, through its own chat template, as it did in training. Its
report of held-out pairs says whether it may be trained against.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from posttrain.data.chat import token_length
from posttrain.data.pairs import render_completion
from posttrain.data.rows import Row
from posttrain.data.trees import build_batch, cut_micro_batches, share_prompts
from posttrain.errors import ConfigError
from posttrain.models.files import reward_report
from posttrain.models.lm import LoadedModel, load_reward_model
from posttrain.models.scores import completion_scores
from posttrain.records import Message, TokenTree
from posttrain.settings import ModelSettings

logger = logging.getLogger(__name__)

Text = str | Sequence[Message]


@torch.no_grad()
def score_trees(
    loaded: LoadedModel,
    trees: Sequence[TokenTree],
    max_tokens: int,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Return the score of every branch, in order; trees with equal prompts are computed together.

    `max_tokens` is the budget of one forward pass; `on_progress` is called with the branches done, and all, after each.
    """
    if not trees:
        return []
    joined, places = share_prompts(trees)
    scores = [0.0] * len(places)
    done = 0
    for micro_batch in cut_micro_batches(joined, max_tokens, layout=loaded.layout):
        batch = build_batch(micro_batch.trees, layout=loaded.layout, pad_id=loaded.pad_id).to(loaded.device)
        found = completion_scores(loaded.model, batch).tolist()
        for branch, score in zip(micro_batch.branches, found, strict=True):
            scores[places[branch]] = score
        done += len(found)
        on_progress(done, len(places))
    return scores


class LearnedReward:
    """The score of a reward model, in the form of a reward function.

    A completion that was cut off is scored as it is, without an end; None stands for one that is empty, or longer with
    its prompt than the reward model's context, which is told once.
    """

    def __init__(self, loaded: LoadedModel, *, max_tokens: int) -> None:
        self._loaded = loaded
        self._max_tokens = max_tokens
        self._max_length = loaded.fit(sys.maxsize)
        self._told = False

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Return a score for each completion."""
        truncated = columns.get("truncated", [False] * len(completions))
        template = columns.get("chat_template_kwargs", [None] * len(completions))
        trees = [self._tree(*each) for each in zip(prompts, completions, truncated, template, strict=True)]
        scores = iter(score_trees(self._loaded, [tree for tree in trees if tree is not None], self._max_tokens))
        return [None if tree is None else next(scores) for tree in trees]

    def _tree(
        self, prompt: Text, completion: Text, truncated: bool, template: Mapping[str, Any] | None
    ) -> TokenTree | None:
        row = Row(
            id="",
            kind="prompt_completion",
            origin="a sampled completion",
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            completion=completion if isinstance(completion, str) else tuple(completion),
            columns={"chat_template_kwargs": template} if template else {},
        )
        tree = render_completion(row, self._loaded.tokenizer, ended=not truncated)
        if token_length(tree) > self._max_length and not self._told:
            logger.warning(
                "completions over the reward model's context of %d tokens, with their prompts, have no score",
                self._max_length,
            )
            self._told = True
        return tree if tree.branches[0].ids and token_length(tree) <= self._max_length else None


def learned_reward(name: str, like: ModelSettings, *, max_tokens: int) -> LearnedReward:
    """Load a reward model in precision and place of another model, and return it as a reward function."""
    model = ModelSettings(name_or_path=name, dtype=like.dtype, device=like.device, layout=like.layout)
    return LearnedReward(load_reward_model(model), max_tokens=max_tokens)


def trust(name: str, *, allow_weak: bool) -> str:
    """Return what the reward model's own report says of it, in words.

    Raises ConfigError where it does not beat chance, unless `allow_weak`.
    """
    report = reward_report(name)
    if report is None:
        return f"reward model {name} comes without a report on held-out pairs: whether it beats chance is not known"
    if not report["beats_chance"] and not allow_weak:
        raise ConfigError(f"reward model {name} is {report['verdict']}", fix="--allow_weak_reward_model true")
    return "\n  ".join([f"reward model {name}: {report['verdict']}", *report["bias"]["findings"]])
