"""The compiled kernels against plain float64 references, for every dtype and the sizes that take different paths."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.kernels.operations import Attention, DecodeRows, Kernels, compiled_kernels, decode_step

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7}  # of bfloat16: half a unit in the last place, twice


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [1, 15, 16, 576, 577])
def test_rms_norm(kernels: Kernels, size: int) -> None:
    x, weight = torch.randn(5, size).to(kernels.dtype), torch.randn(size).to(kernels.dtype)
    assert_close(kernels.rms_norm(x, weight, 1e-3), F.rms_norm(x.double(), (size,), weight.double(), 1e-3))


def test_swiglu_up_to_extreme_gates(kernels: Kernels) -> None:
    gate, up = ((torch.randn(2, 3, 48) * 4).to(kernels.dtype) for _ in range(2))
    gate[0, 0, :4] = torch.tensor([1e4, -1e4, 100.0, -100.0])
    expected = F.silu(gate.double()) * up.double()
    assert_close(kernels.swiglu(gate, up), expected)
    joined = torch.cat([gate, up], dim=-1).flatten(0, 1)
    assert_close(kernels.swiglu_of_joined(joined), expected.flatten(0, 1))


def test_gradients(kernels: Kernels) -> None:
    x, other, grad_out = (torch.randn(2, 3, 48).to(kernels.dtype) for _ in range(3))
    exact = [tensor.double().requires_grad_() for tensor in (x, other)]
    (F.silu(exact[0]) * exact[1]).backward(grad_out.double())
    for got, expected in zip(kernels.swiglu_backward(x, other, grad_out), exact, strict=True):
        assert_close(got, expected.grad)
    weight, exact_x = torch.rand(48).to(kernels.dtype), x.double().requires_grad_()
    F.rms_norm(exact_x, (48,), weight.double(), 1e-2).backward(grad_out.double())
    assert_close(kernels.rms_norm_backward(x, weight, grad_out, 1e-2), exact_x.grad)


@pytest.mark.parametrize("shape", [(3, 1, 32), (2, 5, 3, 64), (4, 2, 96)])
def test_rotation_and_back(kernels: Kernels, shape: tuple[int, ...]) -> None:
    half, states = shape[-1] // 2, torch.randn(shape).to(kernels.dtype)
    angles = torch.rand(*shape[:-2], half).repeat(*[1] * (len(shape) - 2), 2) * 6
    cos, sin = angles.cos().to(kernels.dtype), angles.sin().to(kernels.dtype)
    exact = states.double().requires_grad_()
    turned = torch.cat([-exact[..., half:], exact[..., :half]], dim=-1)
    expected = exact * cos.double().unsqueeze(-2) + turned * sin.double().unsqueeze(-2)
    assert_close(kernels.rotate(states, cos, sin), expected)
    grad_out = torch.randn(shape).to(kernels.dtype)
    expected.backward(grad_out.double())
    assert_close(kernels.rotate(grad_out, cos, sin, back=True), exact.grad)


def test_nan_stays_nan(kernels: Kernels) -> None:
    x = torch.full((1, 32), torch.nan).to(kernels.dtype)
    assert kernels.swiglu(x, x).isnan().all()
    assert kernels.rms_norm(x, torch.ones(32).to(kernels.dtype), 1e-5).isnan().all()
    _, logprobs = kernels.draw(x, torch.tensor([0.5]), 1.0)
    assert logprobs.isnan().all()


@pytest.mark.parametrize("size", [3, 16, 255, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_draw_inverts_the_distribution_function(kernels: Kernels, size: int, temperature: float) -> None:
    logits = (torch.randn(1, size) * 3).to(kernels.dtype)
    logits[0, 1] = -torch.inf
    logprobs = (logits.double() / temperature).log_softmax(dim=-1)[0]
    ends = logprobs.exp().cumsum(dim=0)
    uniforms = torch.rand(500, dtype=torch.float64)
    ids, drawn = kernels.draw(logits.expand(500, -1).contiguous(), uniforms, temperature)
    expected = torch.searchsorted(ends, uniforms * ends[-1], right=True).clamp(max=size - 1)
    far = (ends[None] - uniforms[:, None]).abs().amin(dim=1) > 1e-6  # from a boundary, which rounding may move
    assert far.float().mean() > 0.9
    assert torch.equal(ids[far], expected[far])
    torch.testing.assert_close(drawn.double(), logprobs[ids], rtol=1e-5, atol=1e-5)


def test_draw_takes_the_ends_and_never_the_impossible(kernels: Kernels) -> None:
    logits = torch.full((2, 600), -torch.inf).to(kernels.dtype)
    logits[:, 300], logits[:, 590] = 0.0, 0.0
    ids, logprobs = kernels.draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0)
    assert ids.tolist() == [300, 590]
    torch.testing.assert_close(logprobs, torch.full((2,), 0.5).log())


@pytest.mark.parametrize("size", [16, 256, 1040])
def test_score_targets(kernels: Kernels, size: int) -> None:
    products, targets, factor = (torch.randn(9, size) * 8).to(kernels.dtype), torch.randint(size, (9,)), 0.7
    products[0, (targets[0] + 1) % size] = -torch.inf
    exact = products.double().requires_grad_()
    log_softmax = (factor * exact).log_softmax(dim=-1)
    expected = log_softmax.gather(1, targets[:, None]).squeeze(1)
    entropy = -(log_softmax.exp() * log_softmax.clamp(min=-1e9)).sum(dim=-1)
    (-expected.sum()).backward()
    unchanged = products.clone()
    for gradient in (False, True):
        logprobs, entropies = kernels.score_targets(products, targets, factor=factor, gradient=gradient)
        torch.testing.assert_close(logprobs.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(entropies.double(), entropy.detach(), rtol=1e-5, atol=1e-5)
        if not gradient:
            assert torch.equal(products, unchanged)
    assert_close(products, exact.grad)


def attention_case(
    dtype: torch.dtype, *, heads: int, kv_heads: int, size: int
) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor], DecodeRows]:
    """Return states, angles, prompt and own caches, and rows: five rows on two prompts, in any order."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    angles = torch.rand(5, size) * 6
    rows = DecodeRows(
        order=torch.tensor([1, 2, 4, 0, 3]),
        slots=torch.tensor([1, 0, 0, 1, 0]),
        prompt_lengths=torch.tensor([7, 37, 37, 7, 37]),
        own_positions=torch.tensor([0, 20, 3, 16, 15]),
    )
    caches = [normal(slots, kv_heads, room, size) for slots, room in ((2, 40), (2, 40), (5, 24), (5, 24))]
    states = normal(5, heads + 2 * kv_heads, size)
    return states, (angles.cos().to(dtype), angles.sin().to(dtype)), caches, rows


def reference(
    states: Tensor,
    angles: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor, float] | None,
    caches: list[Tensor],
    rows: DecodeRows,
    *,
    heads: int,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return what each row attends to, `(B, H * D)`, and its new keys and values `(Hkv, D)`, all in float64."""
    prompt_keys, prompt_values, own_keys, own_values = (cache.double() for cache in caches)
    kv_heads, attended, new_keys, new_values = prompt_keys.shape[1], [], [], []
    for row, state in enumerate(states.double()):
        query, key, value = state.split([heads, kv_heads, kv_heads])
        if norms is not None:
            query_norm, key_norm, epsilon = norms
            query = F.rms_norm(query, query_norm.shape, query_norm.double(), epsilon)
            key = F.rms_norm(key, key_norm.shape, key_norm.double(), epsilon)
        cos, sin = (each[row].double() for each in angles)

        def turned(x: Tensor, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
            a, b = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-b, a], dim=-1) * sin

        query, key = turned(query), turned(key)
        slot, length, own = int(rows.slots[row]), int(rows.prompt_lengths[row]), int(rows.own_positions[row])
        keys = torch.cat([prompt_keys[slot, :, :length], own_keys[row, :, :own], key[:, None]], dim=1)
        values = torch.cat([prompt_values[slot, :, :length], own_values[row, :, :own], value[:, None]], dim=1)
        if window is not None:
            keys, values = keys[:, -window:], values[:, -window:]
        grouped = query.unflatten(0, (kv_heads, -1))  # (Hkv, H / Hkv, D)
        weights = (scaling * grouped @ keys.mT).softmax(dim=-1)
        attended.append((weights @ values).flatten())
        new_keys.append(key)
        new_values.append(value)
    return torch.stack(attended), new_keys, new_values


def attended(
    kernels: Kernels,
    states: Tensor,
    angles: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor, float] | None,
    caches: list[Tensor],
    rows: DecodeRows,
    *,
    scaling: float,
    window: int | None,
) -> Tensor:
    kv_heads = caches[0].shape[1]
    layer = Attention(
        heads=states.shape[1] - 2 * kv_heads,
        kv_heads=kv_heads,
        size=states.shape[2],
        scaling=scaling,
        window=window or 0,
    )
    if norms is not None:
        layer.query_norm, layer.key_norm, layer.epsilon = norms[0].data_ptr(), norms[1].data_ptr(), norms[2]
    layer.use((caches[0], caches[1]), (caches[2], caches[3]))
    return kernels.attend(decode_step(rows, angles, caches[0].shape[2], caches[2].shape[2]), layer, states)


SIZES = [(4, 4, 16), (6, 2, 64), (7, 1, 80), (16, 2, 128), (2, 1, 256)]


@pytest.mark.parametrize(("heads", "kv_heads", "size"), SIZES)
@pytest.mark.parametrize(("window", "normed"), itertools.product([None, 5, 20], [False, True]))
def test_decode_attention(
    kernels: Kernels, heads: int, kv_heads: int, size: int, window: int | None, normed: bool
) -> None:
    states, angles, caches, rows = attention_case(kernels.dtype, heads=heads, kv_heads=kv_heads, size=size)
    norms = (torch.rand(size).to(kernels.dtype), torch.rand(size).to(kernels.dtype), 1e-5) if normed else None
    options = {"scaling": 0.5 * size**-0.5, "window": window}
    expected, new_keys, new_values = reference(states, angles, norms, caches, rows, heads=heads, **options)
    before = [cache.clone() for cache in caches]
    actual = attended(kernels, states, angles, norms, caches, rows, **options)
    assert_close(actual, expected)
    for cache, new, old in zip(caches[2:], (new_keys, new_values), before[2:], strict=True):
        for row, position in enumerate(rows.own_positions.tolist()):
            torch.testing.assert_close(cache[row, :, position].double(), new[row], rtol=2**-7, atol=2**-7)
            old[row, :, position] = cache[row, :, position]
        assert torch.equal(cache, old), "only the new keys and values are written"
    assert all(map(torch.equal, caches[:2], before[:2]))


def family_case(
    dtype: torch.dtype, prompt_length: int, siblings: int, *, heads: int, kv_heads: int, size: int
) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor], DecodeRows]:
    """Return what `attention_case` does: rows of one prompt, NaN wherever their caches hold no token yet."""
    rows = DecodeRows(
        order=torch.randperm(siblings),
        slots=torch.ones(siblings, dtype=torch.long),
        prompt_lengths=torch.full((siblings,), prompt_length),
        own_positions=torch.randint(45, (siblings,)),
    )
    shapes = [(slots, kv_heads, room, size) for slots, room in ((2, prompt_length + 2), (siblings, 45)) for _ in "kv"]
    caches = [torch.randn(shape).to(dtype) for shape in shapes]
    for cache in caches[:2]:
        cache[:, :, prompt_length:] = torch.nan
    for cache in caches[2:]:
        for row, position in enumerate(rows.own_positions.tolist()):
            cache[row, :, position:] = torch.nan
    states, angles = torch.randn(siblings, heads + 2 * kv_heads, size).to(dtype), torch.rand(siblings, size) * 6
    return states, (angles.cos().to(dtype), angles.sin().to(dtype)), caches, rows


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 64), (7, 1, 32), (33, 1, 32), (2, 2, 80)])
@pytest.mark.parametrize("siblings", [1, 2, 5, 11, 33])
@pytest.mark.parametrize("window", [None, 20, 64])
def test_a_row_attends_alike_whoever_its_siblings_are(
    kernels: Kernels, heads: int, kv_heads: int, size: int, siblings: int, window: int | None
) -> None:
    options = {"scaling": size**-0.5, "window": window}
    for length in (1, 31, 64, 101):
        case = family_case(kernels.dtype, length, siblings, heads=heads, kv_heads=kv_heads, size=size)
        states, angles, caches, rows = case
        expected, _, _ = reference(states, angles, None, caches, rows, heads=heads, **options)
        actual = attended(kernels, states, angles, None, caches, rows, **options)
        assert_close(actual, expected)
        for row in range(0, siblings, 4):
            alone = slice(row, row + 1)
            own = [cache[alone].clone() for cache in caches[2:]]
            row_alone = DecodeRows(torch.tensor([0]), *(of_rows[alone].contiguous() for of_rows in rows[1:]))
            of_row = (states[alone], (angles[0][alone], angles[1][alone]), None, [*caches[:2], *own], row_alone)
            assert torch.equal(attended(kernels, *of_row, **options), actual[alone])


def test_results_do_not_depend_on_the_number_of_threads(kernels: Kernels) -> None:
    states, angles, caches, rows = attention_case(kernels.dtype, heads=6, kv_heads=2, size=64)
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            of_run = [*caches[:2], caches[2].clone(), caches[3].clone()]
            results.append(attended(kernels, states, angles, None, of_run, rows, scaling=1.0, window=None))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_wrong_tensors_are_refused(kernels: Kernels) -> None:
    with pytest.raises(AssertionError, match="angles"):
        kernels.rotate(*(torch.ones(shape).to(kernels.dtype) for shape in ((4, 2, 32), (3, 32), (3, 32))))
    with pytest.raises(AssertionError, match="float64"):
        kernels.swiglu_of_joined(torch.ones(1, 32, dtype=torch.float64))
    with pytest.raises(AssertionError, match="contiguous"):
        kernels.swiglu_of_joined(torch.ones(32, 32, dtype=kernels.dtype).T)


ROW_COUNTS = [1, 2, 3, 4, 5, 8, 15, 17, 33, 70]


@pytest.mark.parametrize("rows", ROW_COUNTS)
@pytest.mark.parametrize(
    ("outputs", "inputs"), [([48], 16), ([16], 48), ([96], 64), ([16, 32, 48], 96), ([16, 16], 32)]
)
def test_linear(kernels: Kernels, rows: int, outputs: list[int], inputs: int) -> None:
    x, bias, other = (
        torch.randn(*shape).to(kernels.dtype) for shape in ((2, rows, inputs), (sum(outputs),), (2, rows, sum(outputs)))
    )
    weights = [torch.randn(size, inputs).to(kernels.dtype) for size in outputs]
    plain = F.linear(x.double(), torch.cat(weights).double())
    none = [None] * len(weights)
    assert_close(kernels.linear(x, kernels.join(weights, None, none)), plain)
    biased = kernels.join(weights, bias, none)
    assert_close(kernels.linear(x, biased, other), plain + bias.double() + other.double())


@pytest.mark.parametrize("rows", [1, 4, 5, 33, 70])
@pytest.mark.parametrize("ranks", [[4], [0, 5, 17], [16, 16, 16], [48, 40, 64]])
@pytest.mark.parametrize("inputs", [48, 128])
@pytest.mark.parametrize("narrow", [False, True])
def test_adapters_beside_weights(kernels: Kernels, rows: int, ranks: list[int], inputs: int, narrow: bool) -> None:
    sizes = [48, 32, 64][: len(ranks)]
    dtype = torch.bfloat16 if narrow else kernels.dtype
    weights = [torch.randn(size, inputs).to(dtype) for size in sizes]
    adapters = [
        (torch.randn(size, rank) / 4, torch.randn(rank, inputs) / 8) if rank else None
        for size, rank in zip(sizes, ranks, strict=True)
    ]
    x, bias, other = (
        torch.randn(*shape).to(kernels.dtype) for shape in ((rows, inputs), (sum(sizes),), (rows, sum(sizes)))
    )
    exact = F.linear(x.double(), torch.cat(weights).double(), bias.double()) + other.double()
    added = torch.zeros_like(exact)
    for part, adapter in zip(added.split(sizes, dim=1), adapters, strict=True):
        if adapter is not None:
            outer, inner = (factor.to(kernels.dtype).double() for factor in adapter)
            between = (x.double() @ inner.T).to(kernels.dtype)  # rounded between the two products
            part += between.double() @ outer.T
    actual = kernels.linear(x, kernels.join(weights, bias, adapters), other)
    assert_close(actual, exact + added)


@pytest.mark.parametrize("rows", [1, 3, 17, 40])
def test_a_row_does_not_depend_on_the_others(kernels: Kernels, rows: int) -> None:
    weights = [torch.randn(size, 160).to(kernels.dtype) for size in (48, 80)]
    adapters = [(torch.randn(48, 20), torch.randn(20, 160)), None]
    layer, x = kernels.join(weights, None, adapters), torch.randn(70, 160).to(kernels.dtype)
    together = kernels.linear(x, layer)
    x[rows:] = torch.nan
    assert torch.equal(kernels.linear(x, layer)[:rows], together[:rows])
    assert torch.equal(kernels.linear(x[:rows], layer), together[:rows])


@pytest.mark.parametrize("rows", [*range(1, 10), 15, 31, 32, 33, 70])
@pytest.mark.parametrize("outputs", [16, 32, 48])
def test_a_narrower_weight_gives_the_product_of_its_values(kernels: Kernels, rows: int, outputs: int) -> None:
    x, other, bias = (torch.randn(*shape).to(kernels.dtype) for shape in ((rows, 80), (rows, outputs), (outputs,)))
    weight = torch.randn(outputs, 80).bfloat16()
    narrow, whole = (kernels.join([each], bias, [None]) for each in (weight, weight.to(kernels.dtype)))
    assert_close(kernels.linear(x, narrow), F.linear(x.double(), weight.double(), bias.double()))
    torch.testing.assert_close(kernels.linear(x, narrow, other), kernels.linear(x, whole, other))


def test_weights_are_read_where_they_are(kernels: Kernels) -> None:
    weight, x = torch.randn(32, 64).to(kernels.dtype), torch.randn(3, 64).to(kernels.dtype)
    layer = kernels.join([weight], None, [None])
    before = kernels.linear(x, layer)
    weight.mul_(2)
    assert torch.equal(kernels.linear(x, layer), 2 * before)


def test_weights_of_other_forms_are_refused(kernels: Kernels) -> None:
    def ones(*shape: int, dtype: torch.dtype = kernels.dtype) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype)

    wider = torch.float32 if kernels.dtype == torch.bfloat16 else torch.float64
    for weights, message in (
        ([ones(16, 16, dtype=wider)], "and got torch"),
        ([ones(16, 16), ones(16, 16, dtype=wider)], "and got torch"),
        ([ones(16, 16), ones(16, 32)], "16 inputs"),
        ([ones(8, 16)], "multiples"),
        ([ones(16, 8)], "multiples"),
        ([ones(32, 16).T], "strides"),
    ):
        with pytest.raises(AssertionError, match=message):
            kernels.join(weights, None, [None] * len(weights))
    with pytest.raises(AssertionError, match="16 biases"):
        kernels.join([ones(16, 16)], ones(32), [None])


def test_linear_does_not_read_beyond_its_rows(kernels: Kernels) -> None:
    storage = torch.full((40, 64), torch.nan).to(kernels.dtype)
    storage[:3] = 1.0
    layer = kernels.join([torch.ones(32, 64).to(kernels.dtype)], None, [None])
    assert torch.equal(kernels.linear(storage[:3], layer).float(), torch.full((3, 32), 64.0))


def test_which_tensors_are_served() -> None:
    assert compiled_kernels(CPU, torch.float64) is None
    assert compiled_kernels(torch.device("meta"), torch.float32) is None
