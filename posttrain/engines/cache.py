"""Keys and values of decoded tokens in numbered slots: a slot is a prompt, or a sequence being completed.

Floor 2: tensors only; knows neither models nor scheduling.
"""

from torch import Tensor

BLOCK = 32  # tokens by which slots grow: memory follows the longest sequence, and growing copies once in 32 steps


class KeyValueCache:
    """Keys and values `(slots, Hkv, length, D)` of every layer; live slots are the first ones."""

    def __init__(self) -> None:
        self.allocation = object()  # another one whenever a layer's tensors are others
        self._slots = 0
        self._length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, slots: int, length: int) -> None:
        """Make room for `slots` slots of `length` tokens, keeping what the first `slots` hold; the others are freed."""
        if slots <= self._slots and length <= self._length:
            return
        self._slots = slots
        self._length = max(self._length, -(-length // BLOCK) * BLOCK)
        self._layers = {
            layer: (self._grown(keys), self._grown(values)) for layer, (keys, values) in self._layers.items()
        }
        self.allocation = object()

    def write(self, layer: int, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write `(N, Hkv, D)` keys and values at `slots` and `positions`, both `(N,)`."""
        for stored, new in zip(self.open(layer, keys, values), (keys, values), strict=True):
            stored[slots, :, positions] = new

    def open(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return all slots of a layer; if it has none yet, empty ones for heads like these, `(N, Hkv, ..., D)`."""
        if layer not in self._layers:
            self._layers[layer] = self._empty(keys), self._empty(values)
            self.allocation = object()
        return self._layers[layer]

    @property
    def length(self) -> int:
        """How many tokens a slot has room for."""
        return self._length

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return all slots of a layer that was written to."""
        return self._layers[layer]

    def read(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        """Return views of the first `slots` slots, `(slots, Hkv, length, D)`, zeros or old tokens at their ends.

        Whole slots, so that the views are contiguous: a matrix product with a slice copies it first, and takes twice as
        long (9 heads on 3, 16 rows of 40 tokens in bf16: 44 us, against 22 us for 64 tokens).
        """
        keys, values = self._layers[layer]
        return keys[:slots], values[:slots]

    def move(self, sources: Tensor, destinations: Tensor, length: int) -> None:
        """Copy the first `length` tokens of slots `sources` over those of `destinations`, both `(N,)`."""
        if not len(sources):
            return
        for stored in (tensor for layer in self._layers.values() for tensor in layer):
            stored[destinations, :, :length] = stored[sources, :, :length]

    def _empty(self, like: Tensor) -> Tensor:
        # Zeros, not uninitialised memory: a masked weight of 0 times NaN would be NaN.
        return like.new_zeros(self._slots, like.shape[1], self._length, like.shape[-1])

    def _grown(self, stored: Tensor) -> Tensor:
        slots, heads, length, size = stored.shape
        grown = stored.new_zeros(self._slots, heads, self._length, size)
        grown[:slots, :, :length] = stored[: self._slots]
        return grown


def holes_and_movers(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return which live slots must move, and where to, so that the kept ones `(N,)` are the first ones again.

    Both have the same length: movers fill the holes in ascending order.
    """
    kept = int(keep.sum())
    holes = (~keep[:kept]).nonzero().squeeze(1)
    movers = keep[kept:].nonzero().squeeze(1) + kept
    return holes, movers
