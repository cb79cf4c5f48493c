"""Each compiled kernel beside torch's operations, at SmolLM2-135M's sizes: `python -m benchmarks.kernels`.

For a change of a kernel, and for a CPU on which they were never run: ours should be the faster one on each line.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.machine import processor
from benchmarks.tables import table
from posttrain.kernels.operations import Attention, DecodeRows, Kernels, compiled_kernels, decode_step
from posttrain.models.devices import resolve_dtype
from posttrain.models.matmul import matmul
from posttrain.models.padded_trees import PaddedTrees
from posttrain.models.tree_attention import tree_attention, tree_spans

CPU = torch.device("cpu")
HIDDEN, INNER, VOCAB = 576, 1536, 49152
HEADS, KV_HEADS, SIZE = 9, 3, 64
LAYERS = 12  # of the same size, of which each call takes another: weights come from memory, as in decoding
REPEATS = 9


class Case(NamedTuple):
    """A kernel's work, and the same by torch."""

    name: str
    ours: Callable[[], object]
    torch: Callable[[], object]
    flops: float = 0.0  # of products; 0 where memory is what counts


def main() -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=__doc__)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = resolve_dtype(arguments.dtype, CPU)
    kernels = compiled_kernels(CPU, dtype)
    if kernels is None:
        parser.error("no C++ compiler on this machine")
    rows = [measured(case) for case in cases(kernels)]
    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}, {dtype}\n")
    print("\n".join(table(("work", "torch", "ours", "times faster", "GFLOP/s"), rows)))


def measured(case: Case) -> tuple[str, ...]:
    """Return a case's line: medians of calls in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 1):
        for run, kept in zip((case.torch, case.ours), seconds, strict=True):
            started = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started)
    peer, ours = (median(kept[1:]) for kept in seconds)
    rate = f"{case.flops / ours / 1e9:.0f}" if case.flops else ""
    return case.name, f"{peer * 1e3:.2f} ms", f"{ours * 1e3:.2f} ms", f"{peer / ours:.1f}", rate


def cases(kernels: Kernels) -> Iterator[Case]:
    """Yield every case: products and attention of decoding, attention within trees, passes over activations."""
    for rows in (1, 4, 16, 64):
        yield linear_case(kernels, rows)
        yield linear_case(kernels, rows, rank=16)
        if kernels.dtype == torch.float32:
            yield linear_case(kernels, rows, narrow=True)
    for rows in (1, 16, 64):
        yield decode_attention_case(kernels, rows)
    for trees, group, prompt, length in ((4, 4, 128, 64), (1, 8, 128, 128), (8, 1, 128, 128)):
        yield from tree_cases(kernels, trees, group, prompt, length)
    yield from shared_product_cases(kernels)
    yield from pass_cases(kernels)


def linear_case(kernels: Kernels, rows: int, *, narrow: bool = False, rank: int = 0) -> Case:
    """Return a decoding step's products of some rows; with `narrow`, our weights are in bfloat16.

    With a rank, each weight has an adapter; torch's products have it folded in, ours compute it beside.
    """
    weights = [_normal(kernels, 2 * INNER, HIDDEN) for _ in range(LAYERS)]
    adapter = (torch.randn(2 * INNER, rank), torch.randn(rank, HIDDEN)) if rank else None
    layers = [kernels.join([weight.bfloat16() if narrow else weight], None, [adapter]) for weight in weights]
    x = _normal(kernels, rows, HIDDEN)
    kinds = (", weights in bfloat16" if narrow else "") + (f", adapters of rank {rank}" if rank else "")
    return Case(
        f"{LAYERS} products {rows} x {HIDDEN} x {2 * INNER}{kinds}",
        lambda: [kernels.linear(x, layer) for layer in layers],
        lambda: [F.linear(x, weight) for weight in weights],
        2.0 * LAYERS * rows * HIDDEN * 2 * INNER,
    )


def decode_attention_case(kernels: Kernels, rows: int, prompt: int = 128, own: int = 64) -> Case:
    """Return the attention of one new token of each row, on a prompt and its own past."""
    states = _normal(kernels, rows, HEADS + 2 * KV_HEADS, SIZE)
    caches = [_normal(kernels, rows, KV_HEADS, room, SIZE) for room in (prompt, prompt, own, own)]
    places, one = torch.arange(rows), torch.ones(rows, dtype=torch.long)
    decoded = DecodeRows(places, places, one * prompt, one * (own - 1))
    angles = _normal(kernels, rows, SIZE), _normal(kernels, rows, SIZE)
    layer = Attention(heads=HEADS, kv_heads=KV_HEADS, size=SIZE, scaling=SIZE**-0.5, window=0)
    layer.use((caches[0], caches[1]), (caches[2], caches[3]))
    step = decode_step(decoded, angles, prompt, own)
    keys, values = torch.cat(caches[::2], dim=2), torch.cat(caches[1::2], dim=2)
    query = states[:, :HEADS, None].contiguous()
    return Case(
        f"decoding, {rows} x {prompt + own} keys",
        lambda: kernels.attend(step, layer, states),
        lambda: F.scaled_dot_product_attention(query, keys, values, enable_gqa=True),
        4.0 * rows * HEADS * SIZE * (prompt + own),
    )


def tree_cases(kernels: Kernels, trees: int, group: int, prompt: int, length: int) -> Iterator[Case]:
    """Yield attention within trees, forward alone and with the backward pass, beside padded grids."""
    tree_length = prompt + group * length
    starts = range(0, trees * tree_length, tree_length)
    prompts = [(start, prompt) for start in starts]
    branches = [(start + prompt + place * length, length) for start in starts for place in range(group)]
    spans = prompts, branches, [tree for tree in range(trees) for _ in range(group)]
    states = [
        _normal(kernels, trees * tree_length, heads, SIZE).requires_grad_() for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    packed, padded = tree_spans(*spans), PaddedTrees(*spans, device=CPU)
    seen = trees * (prompt**2 / 2 + group * (length * prompt + length**2 / 2))

    def ours() -> Tensor:
        return tree_attention(kernels, packed, *states, scaling=SIZE**-0.5, window=None)

    def torchs() -> Tensor:
        return padded.attend(*states, scaling=SIZE**-0.5, window=None, softcap=None)

    def both(run: Callable[[], Tensor]) -> None:
        torch.autograd.grad(run().float().sum(), states)

    name = f"trees, {trees} of {prompt} + {group} x {length}"
    yield Case(f"{name}, forward", torch.no_grad()(ours), torch.no_grad()(torchs), 4 * SIZE * HEADS * seen)
    yield Case(f"{name}, both", lambda: both(ours), lambda: both(torchs), 14 * SIZE * HEADS * seen)


def pass_cases(kernels: Kernels, tokens: int = 1024) -> Iterator[Case]:
    """Yield what goes over activations or logits once."""
    x, weight = _normal(kernels, tokens, HIDDEN), _normal(kernels, HIDDEN)
    yield Case("norm", lambda: kernels.rms_norm(x, weight, 1e-5), lambda: F.rms_norm(x, (HIDDEN,), weight, 1e-5))
    gate, up = _normal(kernels, tokens, INNER), _normal(kernels, tokens, INNER)
    yield Case("SwiGLU", lambda: kernels.swiglu(gate, up), lambda: F.silu(gate) * up)
    yield rotation_case(kernels, tokens)
    logits, targets = _normal(kernels, 64, VOCAB), torch.randint(VOCAB, (64,))
    yield Case(
        "log-probs of 64 targets",
        lambda: kernels.score_targets(logits, targets, factor=1.0, gradient=False),
        lambda: logits.float().log_softmax(-1).gather(1, targets[:, None]),
    )
    uniforms = torch.rand(64, dtype=torch.float64)
    yield Case(
        "64 draws",
        lambda: kernels.draw(logits, uniforms, 1.0),
        lambda: logits.float().softmax(-1).multinomial(1),
    )


def rotation_case(kernels: Kernels, tokens: int) -> Case:
    """Return the rotary embedding of the queries, as transformers computes it and in one pass."""
    states, cos, sin = (_normal(kernels, *shape) for shape in ((1, tokens, HEADS, SIZE), *[(1, tokens, SIZE)] * 2))
    other = states[..., :1, :]
    return Case(
        "rotation",
        lambda: kernels.rotate(states, cos, sin),
        lambda: apply_rotary_pos_emb(states, other, cos, sin, unsqueeze_dim=2),
    )


def shared_product_cases(kernels: Kernels) -> Iterator[Case]:
    """Yield frozen products of a micro-batch, in the pieces that `models.matmul` makes of them."""
    for tokens, inner, outer in itertools.product((732, 1080), (HIDDEN, INNER), (HIDDEN,)):
        x, weight = _normal(kernels, tokens, inner), _normal(kernels, outer, inner)
        yield Case(
            f"product {tokens} x {inner} x {outer}",
            lambda x=x, weight=weight: matmul(x, weight.T),  # type: ignore[misc]
            lambda x=x, weight=weight: x @ weight.T,  # type: ignore[misc]
            2.0 * tokens * inner * outer,
        )


def _normal(kernels: Kernels, *shape: int) -> Tensor:
    return torch.randn(*shape).to(kernels.dtype)


if __name__ == "__main__":
    main()
