"""The critic of PPO: a value for each state of a completion, on the policy's base, on the policy itself, or apart.

Floor 5. An adapter of its own on one base costs no second model; it starts as the policy does, with a value head whose
first values are near 0.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from posttrain.data.trees import MicroBatch, TreeBatch, in_order
from posttrain.errors import ConfigError
from posttrain.models.lm import LoadedModel, load_model, save_model
from posttrain.models.logprobs import Model, completion_logprobs, plain_model
from posttrain.models.lora import CRITIC_ADAPTER, add_critic_adapter, critic_active
from posttrain.models.scores import freeze_vocabulary_head
from posttrain.models.values import (
    TokenValues,
    completion_values,
    logprobs_and_values,
    make_value_head,
    save_value_head,
)
from posttrain.records import TokenTree
from posttrain.settings import PpoSettings
from posttrain.stages.optimize import forward_all

CRITIC = "critic"  # its folder in the artifact


@dataclass(frozen=True, slots=True)
class Critic:
    """A value head on the model that it reads."""

    kind: Literal["adapter", "shared", "model"]
    loaded: LoadedModel  # the policy's, unless the critic is a model of its own
    head: nn.Linear

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the model compute, and train, as the critic inside the context."""
        if self.kind != "adapter":
            yield
            return
        assert isinstance(self.loaded.model, PeftModel)
        with critic_active(self.loaded.model):
            yield

    @property
    def trained_head(self) -> dict[str, Tensor]:
        """The head's parameters by name."""
        return {f"value_head.{name}": parameter for name, parameter in self.head.named_parameters()}

    def forward(self, model: Model, batch: TreeBatch) -> TokenValues:
        """Return the values of a batch's completions; `optimize.Forward`."""
        return completion_values(model, batch, self.head)

    def save(self, directory: Path) -> None:
        """Write the value head and, unless it is shared, the critic's adapter or model, into the folder `critic`."""
        folder = directory / CRITIC
        folder.mkdir()
        if self.kind == "adapter":
            assert isinstance(self.loaded.model, PeftModel)
            self.loaded.model.save_pretrained(
                str(directory), selected_adapters=[CRITIC_ADAPTER], save_embedding_layers=False
            )  # peft names the folder of an adapter that is not the default one after it
        elif self.kind == "model":
            save_model(self.loaded, folder)
        save_value_head(self.head, folder)


def make_critic(policy: LoadedModel, settings: PpoSettings) -> Critic:
    """Return the critic that the settings ask for; a critic of kind model is loaded here.

    Raises ConfigError for an adapter on a policy that is trained whole.
    """
    kind = settings.critic.kind
    if kind == "auto":
        kind = "adapter" if isinstance(policy.model, PeftModel) else "model"
    if kind == "adapter" and not isinstance(policy.model, PeftModel):
        raise ConfigError(
            "critic.kind = adapter needs a policy with an adapter, and model.lora_r is 0", fix="--critic.kind model"
        )
    loaded = policy
    if kind == "model":
        name = settings.critic.name_or_path or settings.model.name_or_path
        loaded = load_model(settings.model.model_copy(update={"name_or_path": name}), seed=settings.seed)
        freeze_vocabulary_head(plain_model(loaded.model))
    elif kind == "adapter":
        assert isinstance(policy.model, PeftModel)
        add_critic_adapter(policy.model)
    return Critic(kind, loaded, make_value_head(loaded, seed=settings.seed))


@torch.no_grad()
def evaluate_both(
    policy: LoadedModel, critic: Critic, trees: Sequence[TokenTree], max_tokens: int, *, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs `(B, T)`, values `(B, T)` and the values after the last tokens `(B,)` of all branches.

    On the CPU, 0 on padding; of one pass where the two share their model.
    """
    if critic.kind == "shared":
        both = partial(logprobs_and_values, head=critic.head, temperature=temperature)
        outputs = list(forward_all(policy, trees, max_tokens, both))
        of_policy = [(micro_batch, tokens.logprobs) for micro_batch, _, (tokens, _) in outputs]
        of_critic = [(micro_batch, values) for micro_batch, _, (_, values) in outputs]
    else:
        forward = partial(completion_logprobs, temperature=temperature)
        passes = forward_all(policy, trees, max_tokens, forward)
        of_policy = [(micro_batch, tokens.logprobs) for micro_batch, _, tokens in passes]
        with critic.active():
            passes = forward_all(critic.loaded, trees, max_tokens, critic.forward)
            of_critic = [(micro_batch, values) for micro_batch, _, values in passes]
    final = torch.stack(in_order((micro_batch, values.final.cpu()) for micro_batch, values in of_critic))
    return _joined(of_policy), _joined([(micro_batch, values.values) for micro_batch, values in of_critic]), final


def _joined(parts: Sequence[tuple[MicroBatch, Tensor]]) -> Tensor:
    """Return the rows of all micro-batches `(b, t)`, padded to the longest, on the CPU."""
    return pad_sequence(in_order((micro_batch, part.cpu()) for micro_batch, part in parts), batch_first=True)
