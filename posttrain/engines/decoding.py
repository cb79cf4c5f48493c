"""One request being decoded: prompts enter the cache, their branches decode side by side, and leave when they end.

Floor 2: all state of a request; nothing in it outlives the request.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engines.cache import KeyValueCache, holes_and_movers
from posttrain.engines.endings import Endings
from posttrain.engines.layouts import DecodeLayout, Grouping, PrefillLayout
from posttrain.engines.rows import Branch, Rows
from posttrain.engines.sampling import sample
from posttrain.engines.stack import LayerStack
from posttrain.models.attention import AttentionLayout
from posttrain.records import Completion
from posttrain.settings import SamplingSettings

PREFILL_TOKENS = 4096  # prompt tokens in one forward: bounds its memory


@dataclass
class Tree:
    """A distinct prompt with the branches that wait for a row."""

    prompt_ids: tuple[int, ...]
    waiting: deque[Branch] = field(default_factory=deque)
    num_live: int = 0  # branches that are decoding
    slot: int = -1  # in the prompt cache; -1 until computed
    logits: Tensor = field(default_factory=lambda: torch.empty(0))  # after the prompt, (V,), while branches wait


class Decoding:
    """A request in progress: `advance` until it is no longer `unfinished`."""

    def __init__(
        self,
        model: PreTrainedModel,
        stack: LayerStack | None,
        trees: Sequence[Tree],
        endings: Endings,
        sampling: SamplingSettings,
        num_rows: int,
    ) -> None:
        """Take the trees to complete, and how many rows to decode side by side; a stack, where given, decodes."""
        self._model, self._stack, self._endings, self._sampling = model, stack, endings, sampling
        self._num_rows = num_rows
        self._waiting = deque(trees)
        self._live: list[Tree] = []  # by slot of the prompt cache
        self._tree_of_prompt = {branch.prompt_index: tree for tree in trees for branch in tree.waiting}
        self._rows = Rows(num_rows, sampling, model.device)
        self._longest = 0  # tokens of the longest live completion
        self._prompts, self._completions = KeyValueCache(), KeyValueCache()
        self._grouping: Grouping | None = None  # None when rows came or went

    @property
    def unfinished(self) -> bool:
        """Whether anything waits or decodes."""
        return bool(self._waiting or len(self._rows))

    def advance(self) -> list[tuple[Branch, Completion]]:
        """Let waiting branches into the free rows, or else decode a token of every row; return what ended."""
        if self._waiting and len(self._rows) < self._num_rows:
            rows, logits = self._enter()
        else:
            rows, logits = slice(0, len(self._rows)), self._decode()
        sampled = sample(logits, self._rows.next_uniforms(rows), self._sampling)
        self._rows.append(rows, sampled)
        ended = self._ended(rows, sampled.ids)
        leaving = [(self._rows.branches[row], completion) for row, completion in ended.items()]
        if ended:
            self._remove(ended)
        return leaving

    def _enter(self) -> tuple[slice, Tensor]:
        """Give the free rows to waiting branches; return those rows and the logits `(N, V)` of their first tokens."""
        entering: list[tuple[Tree, Branch]] = []
        while self._waiting and len(self._rows) + len(entering) < self._num_rows:
            tree = self._waiting[0]
            entering.append((tree, tree.waiting.popleft()))
            tree.num_live += 1
            if not tree.waiting:
                self._waiting.popleft()
        trees = list({tree.prompt_ids: tree for tree, _ in entering}.values())
        for pack in _packs([tree for tree in trees if tree.slot < 0]):
            self._prefill(pack)
        logits = torch.stack([tree.logits for tree, _ in entering])
        for tree in trees:
            tree.logits = tree.logits.clone() if tree.waiting else torch.empty(0)  # a view would hold its whole pack
        self._grouping = None
        return self._rows.enter([branch for _, branch in entering]), logits

    def _prefill(self, trees: Sequence[Tree]) -> None:
        """Compute prompts in one forward: their keys and values, and the logits after the last token."""
        for tree in trees:
            tree.slot = len(self._live)
            self._live.append(tree)
        lengths = [len(tree.prompt_ids) for tree in trees]
        self._prompts.reserve(len(self._live), max(lengths))
        layout = PrefillLayout(self._prompts, lengths, [tree.slot for tree in trees], self._model.device)
        ids = torch.tensor([token for tree in trees for token in tree.prompt_ids], device=self._model.device)
        last = torch.tensor(lengths, device=ids.device).cumsum(0) - 1
        for tree, logits in zip(trees, self._forward(ids, layout.positions, layout, last), strict=True):
            tree.logits = logits

    def _decode(self) -> Tensor:
        """Compute the logits `(B, V)` of the next token of every live row."""
        device = self._model.device
        if self._grouping is None:
            slots = [self._tree_of_prompt[branch.prompt_index].slot for branch in self._rows.branches]
            self._grouping = Grouping(slots, [len(tree.prompt_ids) for tree in self._live], device)
        self._completions.reserve(self._num_rows if self._waiting else len(self._rows), self._longest)
        own_positions = self._rows.lengths[: len(self._rows)] - 1
        layout = DecodeLayout(self._prompts, self._completions, self._grouping, own_positions)
        if self._stack is not None:
            return self._stack.logits(self._rows.latest, layout)
        return self._forward(self._rows.latest, layout.positions, layout, 0)

    def _forward(self, ids: Tensor, positions: Tensor, layout: AttentionLayout, kept: Tensor | int) -> Tensor:
        """Run the model on packed tokens `(T,)`; return the logits `(N, V)` at the positions kept, 0 for all."""
        output = self._model(
            input_ids=ids[None], position_ids=positions[None], layout=layout, use_cache=False, logits_to_keep=kept
        )
        return output.logits[0]

    def _ended(self, rows: slice, ids: Tensor) -> dict[int, Completion]:
        """Return the completions of those of `rows` that the tokens `ids` just appended have ended."""
        tails = self._rows.tails(rows, self._endings.tail_width)
        lengths, candidates = self._endings.candidates(ids, self._rows.lengths[rows], tails)
        ended = {}
        for index in candidates:
            row = rows.start + index
            completion = self._endings.completion(*self._rows.sequence(row, int(lengths[index])))
            if completion is not None:
                ended[row] = completion
                lengths[index] = 0
        others = self._longest if rows.start > 0 else 0
        self._longest = max(others, int(lengths.max()))
        return ended

    def _remove(self, ended: Iterable[int]) -> None:
        """Free the rows `ended`, and the prompts that nobody needs any more."""
        keep = torch.ones(len(self._rows), dtype=torch.bool)
        for row in ended:
            keep[row] = False
            self._tree_of_prompt[self._rows.branches[row].prompt_index].num_live -= 1
        holes, movers = holes_and_movers(keep)
        self._completions.move(movers, holes, self._longest)
        self._rows.keep(int(keep.sum()), movers, holes)
        needed = torch.tensor([bool(tree.num_live or tree.waiting) for tree in self._live])
        holes, movers = holes_and_movers(needed)
        self._prompts.move(movers, holes, max(len(tree.prompt_ids) for tree in self._live))
        for mover, hole in zip(movers.tolist(), holes.tolist(), strict=True):
            self._live[hole] = self._live[mover]
            self._live[hole].slot = hole
        del self._live[int(needed.sum()) :]
        self._grouping = None


def _packs(trees: Sequence[Tree]) -> Iterator[list[Tree]]:
    """Cut trees into runs of at most PREFILL_TOKENS prompt tokens, or of one prompt."""
    pack: list[Tree] = []
    tokens = 0
    for tree in trees:
        if pack and tokens + len(tree.prompt_ids) > PREFILL_TOKENS:
            yield pack
            pack, tokens = [], 0
        pack.append(tree)
        tokens += len(tree.prompt_ids)
    if pack:
        yield pack
