"""What ends a completion: an end-of-sequence id, a stop string, or the token limit.

Floor 2: knows the tokenizer and the settings; no model, no cache.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.errors import NonFiniteError
from posttrain.records import Completion, StopReason
from posttrain.settings import SamplingSettings

MARGIN = 8  # tokens: a decoded tail may begin inside a character, lose a leading space, or hold special tokens


class Endings:
    """Decides which completions have ended, and turns their tokens into records."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Iterable[int],
        sampling: SamplingSettings,
        device: torch.device,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._eos = torch.tensor(sorted(self._eos_ids), dtype=torch.long, device=device)
        self._stops = sampling.stop
        self._max_length = sampling.max_completion_length
        # A token that shows has at least one byte, so this many last tokens hold any stop string just completed.
        self.tail_width = max(len(stop.encode()) for stop in self._stops) + MARGIN if self._stops else 0

    def candidates(self, ids: Tensor, lengths: Tensor, tails: Tensor) -> tuple[Tensor, list[int]]:
        """Return, on the CPU, the lengths `(B,)` and which sequences may have ended.

        Takes the id just sampled `(B,)`, the lengths with it `(B,)` and the last `tail_width` ids `(B, tail_width)`,
        -1 where there is none. The one transfer from the device in a decoding step.
        """
        ended = torch.isin(ids, self._eos) | (lengths == self._max_length)
        report = torch.cat([torch.stack([ended.long(), lengths], dim=1), tails], dim=1).cpu()
        ended = report[:, 0].bool()
        if self._stops:
            texts = [self._decode([token for token in tail if token >= 0]) for tail in report[:, 2:].tolist()]
            ended |= torch.tensor([self._find_stop(text) is not None for text in texts])
        return report[:, 1], ended.nonzero().squeeze(1).tolist()

    def completion(self, ids: Sequence[int], logprobs: Sequence[float]) -> Completion | None:
        """Return the completion that has these tokens, or None if nothing has ended it yet.

        Raises NonFiniteError for a NaN log-prob: the model's logits were NaN.
        """
        text = self._decode(ids)
        stop_at = self._find_stop(text)
        if ids[-1] in self._eos_ids:
            reason, text = StopReason.EOS, self._decode(ids[:-1])  # the tokenizer may not call that id special
        elif stop_at is not None:
            reason, text = StopReason.STOP_STRING, text[:stop_at]
        elif len(ids) == self._max_length:
            reason = StopReason.LENGTH
        else:
            return None
        if any(logprob != logprob for logprob in logprobs):
            raise NonFiniteError("the engine expected finite logits, and the model's were NaN")
        return Completion(ids=tuple(ids), engine_logprobs=tuple(logprobs), stop_reason=reason, text=text)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _find_stop(self, text: str) -> int | None:
        return min((text.find(stop) for stop in self._stops if stop in text), default=None)
