"""The sampler against exact probabilities: distribution, kept sets, log-probs, and the edges of rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from posttrain.engines import sampling as engine_sampling
from posttrain.engines.sampling import BLOCK, inverse_cdf, sample, truncate, uniforms
from posttrain.settings import SamplingSettings

pytestmark = pytest.mark.usefixtures("compiled_or_not")
LAST_UNIFORM = float(np.nextafter(1.0, 0.0))


@pytest.fixture(params=["compiled", "torch"])
def compiled_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(engine_sampling, "compiled_kernels", lambda *_: None)


def random_logits(rows: int, vocab_size: int, *, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def chi_square_p(logits: torch.Tensor, expected: torch.Tensor, sampling: SamplingSettings) -> float:
    """Return the p-value of 40,000 draws from one row of logits under the expected probabilities."""
    draws = 40_000
    uniform = torch.from_numpy(np.concatenate([uniforms(seed, 400) for seed in range(draws // 400)]))
    counts = torch.zeros(logits.shape[-1])
    for chunk in uniform.split(4_000):
        counts += torch.bincount(sample(logits.expand(len(chunk), -1), chunk, sampling).ids, minlength=logits.shape[-1])
    assert counts[expected == 0].sum() == 0
    likely = expected * draws > 5  # the chi-square approximation needs expected counts of about 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    wanted = torch.cat([expected[likely], expected[~likely].sum()[None]]).double() * draws
    some = wanted > 0
    return float(chisquare(observed[some].double(), wanted[some] * draws / wanted[some].sum()).pvalue)


@pytest.mark.parametrize("vocab_size", [7, 50, 3 * BLOCK + 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
def test_draws_follow_the_softmax_at_the_temperature(vocab_size: int, temperature: float) -> None:
    logits = random_logits(1, vocab_size)
    expected = (logits[0] / temperature).softmax(-1)
    assert chi_square_p(logits, expected, SamplingSettings(temperature=temperature)) > 1e-3


def test_chi_square_sees_a_wrong_temperature() -> None:
    logits = random_logits(1, 50)
    assert chi_square_p(logits, logits[0].softmax(-1), SamplingSettings(temperature=1.1)) < 1e-6


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSettings(top_k=5),
        SamplingSettings(top_p=0.8),
        SamplingSettings(min_p=0.1),
        SamplingSettings(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02),
    ],
)
def test_truncated_draws_follow_the_renormalised_rest(sampling: SamplingSettings) -> None:
    logits = random_logits(1, 300)
    expected = torch.tensor(kept_probs((logits[0] / sampling.temperature).softmax(-1).tolist(), sampling))
    assert chi_square_p(logits, expected / expected.sum(), sampling) > 1e-3


def kept_probs(probs: list[float], sampling: SamplingSettings) -> list[float]:
    """Apply top-k, top-p and min-p by their definitions, a token at a time."""
    ranked = sorted(range(len(probs)), key=lambda index: -probs[index])
    kept = ranked[: sampling.top_k] if sampling.top_k else ranked
    total, mass, nucleus = sum(probs[index] for index in kept), 0.0, []
    for index in kept:
        if sampling.top_p < 1.0 and mass >= sampling.top_p * total:
            break
        nucleus.append(index)
        mass += probs[index]
    final = {index for index in nucleus if probs[index] >= sampling.min_p * max(probs)}
    return [prob if index in final else 0.0 for index, prob in enumerate(probs)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab_size=st.integers(1, 600),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)
def test_kept_sets_are_exact(seed: int, vocab_size: int, top_k: int, top_p: float, min_p: float) -> None:
    probs = random_logits(3, vocab_size, seed=seed).softmax(-1)
    kept, candidates = truncate(probs, top_k=top_k, top_p=top_p, min_p=min_p)
    spread = kept if candidates is None else torch.zeros_like(probs).scatter(1, candidates, kept)
    sampling = SamplingSettings(top_k=top_k, top_p=top_p, min_p=min_p)
    for row, expected in zip(spread.tolist(), probs.tolist(), strict=True):
        assert row == kept_probs(expected, sampling)


def test_top_p_of_equal_probabilities_keeps_the_smallest_set() -> None:
    kept, _ = truncate(torch.full((1, 8), 0.125), top_k=0, top_p=0.5, min_p=0.0)
    assert (kept > 0).sum() == 4


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-8, 0.3, 1.0, 7.0]), min_size=1, max_size=3 * BLOCK),
    uniform=st.one_of(st.floats(0.0, LAST_UNIFORM), st.sampled_from([0.0, LAST_UNIFORM])),
)
def test_a_draw_never_lands_on_weight_zero_nor_off_the_end(weights: list[float], uniform: float) -> None:
    weights[len(weights) // 2] = 1e-8
    index = int(inverse_cdf(torch.tensor([weights]), torch.tensor([uniform], dtype=torch.float64)))
    assert weights[index] > 0


def test_a_draw_inverts_the_distribution_function() -> None:
    weights = random_logits(2_000, 700).softmax(-1)
    uniform = torch.from_numpy(uniforms(1, 2_000))
    sums = weights.double().cumsum(-1)
    expected = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True).squeeze(1)
    assert torch.equal(inverse_cdf(weights, uniform), expected)


def test_the_first_and_last_uniforms_take_the_first_and_last_weighted_tokens() -> None:
    weights = torch.zeros(1, 2 * BLOCK + 3)
    weights[0, [5, 300, 400]] = torch.tensor([1.0, 1e-12, 1e-3])
    assert int(inverse_cdf(weights, torch.tensor([0.0]))) == 5
    assert int(inverse_cdf(weights, torch.tensor([1.0]))) == 400  # float32 rounds the last uniform numbers up to 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_over_the_whole_vocabulary(temperature: float, dtype: torch.dtype) -> None:
    logits = random_logits(16, 500).to(dtype)
    sampling = SamplingSettings(temperature=temperature, top_k=4, top_p=0.7, min_p=0.1)
    ids, logprobs = sample(logits, torch.from_numpy(uniforms(0, 16)), sampling)
    expected = (logits.double() / temperature).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, atol=2e-6, rtol=1e-6)


def test_temperature_zero_is_greedy_with_logprobs_at_one() -> None:
    logits = random_logits(16, 500)
    ids, logprobs = sample(logits, torch.zeros(16), SamplingSettings(temperature=0.0))
    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_a_tiny_temperature_is_greedy_without_overflow() -> None:
    logits = random_logits(16, 500)
    ids, logprobs = sample(logits, torch.full((16,), 0.999), SamplingSettings(temperature=1e-40))
    assert torch.equal(ids, logits.argmax(-1))
    assert torch.equal(logprobs, torch.zeros(16))


def test_excluded_tokens_and_nan_logits() -> None:
    logits = random_logits(2, 300)
    logits[0, 10:] = -torch.inf
    logits[1, 3] = torch.nan
    ids, logprobs = sample(logits, torch.tensor([0.99, 0.5]), SamplingSettings())
    assert ids[0] < 10
    assert logprobs[0].isfinite()
    assert 0 <= ids[1] < 300
    assert logprobs[1].isnan()


def test_uniforms_are_a_stream_of_their_seed() -> None:
    assert np.array_equal(uniforms(7, 100)[:10], uniforms(7, 10))
    assert not np.array_equal(uniforms(7, 10), uniforms(8, 10))
    assert len(np.unique(np.concatenate([uniforms(2**62 + seed, 100) for seed in range(100)]))) == 10_000
