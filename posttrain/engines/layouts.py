"""The attention of an engine: prompts computed once into a cache, and branches that share it token by token.

Floor 2: the two layouts that the native engine passes to `model(..., layout=layout)`; see `models/attention.py`.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.engines.cache import KeyValueCache
from posttrain.kernels.operations import DecodeRows
from posttrain.models.attention import TreeLayout


class PrefillLayout(TreeLayout):
    """Prompts packed into one sequence, whose keys and values are kept in the slots given."""

    def __init__(
        self, cache: KeyValueCache, lengths: Sequence[int], slots: Sequence[int], device: torch.device
    ) -> None:
        counts = torch.tensor(lengths, device=device)
        starts = counts.cumsum(0) - counts
        self.positions = torch.arange(int(counts.sum()), device=device) - starts.repeat_interleave(counts)  # (T,)
        self._slots = torch.tensor(slots, device=device).repeat_interleave(counts)  # (T,)
        self._cache = cache
        spans = list(zip(starts.tolist(), lengths, strict=True))
        super().__init__(spans, [], [], device=device)

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Keep the layer's keys and values, then attend within each prompt."""
        self._cache.write(layer_index, self._slots, self.positions, key[0].transpose(0, 1), value[0].transpose(0, 1))
        return super().attend(
            layer_index, query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap
        )


class Grouping:
    """How the B decoding rows share P prompts: `(P, Gmax)` places, of which each row has one."""

    def __init__(self, slots: Sequence[int], prompt_lengths: Sequence[int], device: torch.device) -> None:
        """Take the prompt slot of each row, B of them, and the prompt length of each slot, P of them."""
        prompt_of_row = torch.tensor(slots)
        order = prompt_of_row.argsort(stable=True)
        counts = prompt_of_row.bincount(minlength=len(prompt_lengths))  # (P,)
        widest = int(counts.max())
        rank = torch.arange(len(slots)) - (counts.cumsum(0) - counts)[prompt_of_row[order]]
        places = prompt_of_row[order] * widest + rank
        row_of_place = torch.zeros(len(prompt_lengths) * widest, dtype=torch.long)
        row_of_place[places] = order  # an empty place repeats row 0, and nobody reads it
        place_of_row = torch.empty_like(order)
        place_of_row[order] = places
        self._shape = (len(prompt_lengths), widest)
        self._in_order = torch.equal(row_of_place, torch.arange(len(slots)))  # every place has its row already
        self._row_of_place, self._place_of_row = row_of_place.to(device), place_of_row.to(device)
        self.prompt_of_row, self.order = prompt_of_row.to(device), order.to(device)  # (B,), rows by prompt
        self.prompt_lengths = torch.tensor(prompt_lengths)[prompt_of_row].to(device)  # of each row, (B,)
        self.num_prompts = len(prompt_lengths)

    def gather(self, of_rows: Tensor) -> Tensor:
        """Turn `(B, Hkv, Q, D)` into `(P, Hkv, Gmax * Q, D)`: a prompt's branches become further queries."""
        heads, queries, size = of_rows.shape[1:]
        of_places = of_rows if self._in_order else of_rows.index_select(0, self._row_of_place)
        by_prompt = of_places.unflatten(0, self._shape).transpose(1, 2)
        return by_prompt.reshape(self._shape[0], heads, self._shape[1] * queries, size)

    def scatter(self, of_prompts: Tensor) -> Tensor:
        """Turn `(P, Hkv, Gmax * Q, D)` back into `(B, Hkv, Q, D)`."""
        of_places = of_prompts.unflatten(2, (self._shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return of_places if self._in_order else of_places.index_select(0, self._place_of_row)


class DecodeLayout:
    """One new token for each row: it sees its row's prompt and the row's own past, under one softmax.

    The heads that share a key head, and the branches that share a prompt, are query rows of one matrix product:
    a prompt's keys and values are read once for all its branches and are never copied.
    """

    def __init__(
        self, prompts: KeyValueCache, completions: KeyValueCache, grouping: Grouping, own_positions: Tensor
    ) -> None:
        """Take the position `(B,)` of each row's new token among its own tokens; the caches have room for it."""
        self.prompts, self.completions, self._grouping = prompts, completions, grouping
        self._own_positions = own_positions
        self.positions = grouping.prompt_lengths + own_positions  # (B,)
        self.rows = DecodeRows(grouping.order, grouping.prompt_of_row, grouping.prompt_lengths, own_positions)
        self._biases: dict[int | None, Tensor] = {}  # by window
        self._scores = torch.empty(0)

    @functools.cached_property
    def _rows(self) -> Tensor:
        return torch.arange(len(self._own_positions), device=self._own_positions.device)

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend from each row's token, `(1, H, B, D)`; see `AttentionLayout.attend`."""
        rows, kv_heads = len(self._rows), key.shape[1]
        self.completions.write(
            layer_index, self._rows, self._own_positions, key[0].transpose(0, 1), value[0].transpose(0, 1)
        )
        own_keys, own_values = self.completions.read(layer_index, rows)  # (B, Hkv, Tc, D)
        prompt_keys, prompt_values = self.prompts.read(layer_index, self._grouping.num_prompts)  # (P, Hkv, Tp, D)
        queries = query[0].transpose(0, 1).unflatten(1, (kv_heads, -1))  # (B, Hkv, H / Hkv, D)
        lengths = [self.prompts.length, self.completions.length]
        shape = (*queries.shape[:-1], sum(lengths))
        if self._scores.shape != shape:
            self._scores = torch.empty(shape, dtype=torch.float32, device=query.device)
        to_prompt, to_own = self._scores.split(lengths, dim=-1)
        to_prompt.copy_(self._grouping.scatter(self._grouping.gather(queries) @ prompt_keys.mT))
        to_own.copy_(queries @ own_keys.mT)
        bias = self._bias_within(sliding_window)
        if softcap is None:
            scores = torch.add(bias, self._scores, alpha=scaling)
        else:
            scores = self._scores.mul(scaling / softcap).tanh_().mul_(softcap).add_(bias)
        to_prompt, to_own = scores.softmax(dim=-1).to(value.dtype).split(lengths, dim=-1)
        attended = self._grouping.scatter(self._grouping.gather(to_prompt) @ prompt_values) + to_own @ own_values
        return attended.flatten(1, 2)[None]  # (1, B, H, Dv)

    def _bias_within(self, window: int | None) -> Tensor:
        """Return `(B, 1, 1, Tp + Tc)`: 0 for the keys that a row sees, -inf for the others."""
        if window not in self._biases:
            in_prompt = torch.arange(self.prompts.length, device=self._rows.device)
            in_own = torch.arange(self.completions.length, device=self._rows.device)
            prompt_lengths, own_positions = self._grouping.prompt_lengths[:, None], self._own_positions[:, None]
            hidden = torch.cat([in_prompt >= prompt_lengths, in_own > own_positions], dim=1)  # (B, Tp + Tc)
            if window is not None:
                key_positions = torch.cat([in_prompt.expand(len(self._rows), -1), prompt_lengths + in_own], dim=1)
                hidden |= self.positions[:, None] - key_positions >= window
            bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._biases[window] = bias[:, None, None]
        return self._biases[window]
