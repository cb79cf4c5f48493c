"""The KL to a reference against its exact value, on models whose every completion can be listed."""

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.engines import ENGINES
from posttrain.errors import ConfigError
from posttrain.evals import references
from posttrain.evals.evaluate import evaluate
from posttrain.evals.references import ReferenceModel, open_reference
from posttrain.models.lm import LoadedModel, load_model, save_model
from posttrain.records import Completion, Prompt, StopReason
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import DataSettings, EngineSettings, EvalSettings, ModelSettings, SamplingSettings
from tests.conftest import write_rows

VOCABULARY = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4, "d": 5}
EOS, LENGTH = 1, 3
PROMPT = Prompt("p", (2, 3), "ab", {})


@pytest.fixture(scope="module")
def make_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that writes a random model of six tokens, far from uniform, and returns its directory."""

    def make(seed: int, vocabulary: dict[str, int] = VOCABULARY) -> str:
        directory = tmp_path_factory.mktemp("model")
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(
            directory
        )
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.4,
            pad_token_id=0, eos_token_id=EOS,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(directory)
        return str(directory)

    return make


@pytest.fixture(scope="module")
def directories(make_directory: Callable[..., str]) -> tuple[str, str]:
    return make_directory(0), make_directory(1)


def settings_of(directory: str, **options: object) -> ModelSettings:
    return ModelSettings(name_or_path=directory, dtype="float32", device="cpu", **options)


def loaded(directory: str, **options: object) -> LoadedModel:
    return load_model(settings_of(directory, **options), seed=0, trainable=False)


def all_completions() -> list[Completion]:
    """Return every completion of at most LENGTH tokens: those that end, and those that are cut off."""
    found = []
    for length in range(1, LENGTH + 1):
        for ids in product(range(6), repeat=length):
            ended = ids[-1] == EOS
            if EOS in ids[:-1] or not (ended or length == LENGTH):
                continue
            found.append(Completion(ids, (), StopReason.EOS if ended else StopReason.LENGTH, ""))
    return found


def exact_kl(policy: LlamaForCausalLM, reference: LlamaForCausalLM) -> float:
    """Return the KL of completions by the chain rule, a plain forward for each prefix that has not ended."""

    def next_token(model: LlamaForCausalLM, ids: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

    def rest(ids: tuple[int, ...], left: int) -> float:
        if left == 0 or ids[-1] == EOS:
            return 0.0
        p, q = next_token(policy, ids), next_token(reference, ids)
        here = float((p.exp() * (p - q)).sum())
        return here + sum(float(p[token].exp()) * rest((*ids, token), left - 1) for token in range(6))

    return rest(PROMPT.ids, LENGTH)


@pytest.fixture(scope="module")
def kl(directories: tuple[str, str]) -> float:
    plain = [LlamaForCausalLM.from_pretrained(directory).eval() for directory in directories]
    return exact_kl(*plain)


def test_over_all_completions_the_log_ratios_are_the_exact_kl(directories: tuple[str, str], kl: float) -> None:
    model = ReferenceModel(loaded(directories[0]), loaded(directories[1]))
    found = model.distances([PROMPT], [all_completions()])
    chances = np.exp([one.policy_logprob for one in found])
    ratios = np.array([one.policy_logprob - one.ref_logprob for one in found])
    assert chances.sum() == pytest.approx(1.0, abs=1e-5)  # every completion was there, once
    assert kl > 0.1
    assert float(chances @ ratios) == pytest.approx(kl, rel=1e-4)
    assert all(0 <= one.entropy <= math.log(6) + 1e-6 for one in found)


def test_sampled_completions_estimate_it(directories: tuple[str, str], kl: float) -> None:
    policy = loaded(directories[0])
    engine = ENGINES["native"](policy, EngineSettings(), lambda: False)
    count = 4000
    sampling = SamplingSettings(max_completion_length=LENGTH)
    completions = engine.generate([PROMPT], sampling, num_samples=count, seeds=[list(range(count))])
    found = ReferenceModel(policy, loaded(directories[1])).distances([PROMPT], completions)
    ratios = np.array([one.policy_logprob - one.ref_logprob for one in found])
    error = ratios.std(ddof=1) / math.sqrt(count)
    assert error < kl / 10
    assert ratios.mean() == pytest.approx(kl, abs=4 * error)


def test_the_numbers_do_not_depend_on_batches_or_layout(directories: tuple[str, str]) -> None:
    prompts = [PROMPT, Prompt("q", (5, 4, 3, 2), "dcba", {})]
    completions = [all_completions()[:40], all_completions()[40:60]]
    expected = ReferenceModel(loaded(directories[0]), loaded(directories[1])).distances(prompts, completions)
    for layout, max_tokens in (("tree", 9), ("rows", 4096), ("rows", 20)):
        pair = [loaded(directory, layout=layout) for directory in directories]
        found = ReferenceModel(*pair).distances(prompts, completions, max_tokens=max_tokens)
        for one, other in zip(found, expected, strict=True):
            assert (one.policy_logprob, one.ref_logprob, one.entropy) == pytest.approx(
                (other.policy_logprob, other.ref_logprob, other.entropy), abs=1e-5
            )


@pytest.fixture(scope="module")
def adapter(directories: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of an adapter on the first model that changes it."""
    policy = load_model(settings_of(directories[0], lora_r=4), seed=0)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) / 4
    directory = tmp_path_factory.mktemp("adapter")
    save_model(policy, directory)
    return str(directory)


def test_an_adapter_is_measured_against_its_base_without_a_second_model(
    directories: tuple[str, str], adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, completions = loaded(adapter), [all_completions()]
    twice = ReferenceModel(policy, loaded(directories[0])).distances([PROMPT], completions)
    monkeypatch.setattr(references, "load_model", None)
    once = open_reference(settings_of(directories[0]), policy, settings_of(adapter)).distances([PROMPT], completions)
    assert max(abs(one.ref_logprob - other.ref_logprob) for one, other in zip(once, twice, strict=True)) < 1e-5
    assert max(abs(one.policy_logprob - one.ref_logprob) for one in once) > 0.1
    assert once == open_reference(settings_of(directories[0]), policy, settings_of(adapter)).distances(
        [PROMPT], completions
    )  # the adapter is on again


def test_another_model_is_loaded_in_the_same_precision(directories: tuple[str, str], adapter: str) -> None:
    policy = loaded(adapter)
    found = open_reference(settings_of(directories[1]), policy, settings_of(adapter)).distances(
        [PROMPT], [all_completions()]
    )
    expected = ReferenceModel(policy, loaded(directories[1])).distances([PROMPT], [all_completions()])
    assert found == expected


def test_other_tokens_are_refused(directories: tuple[str, str], make_directory: Callable[..., str]) -> None:
    renamed = {("e" if token == "d" else token): number for token, number in VOCABULARY.items()}
    with pytest.raises(ConfigError, match="no KL between models of different tokens"):
        ReferenceModel(loaded(directories[0]), loaded(make_directory(2, renamed)))


@pytest.fixture
def evaluated(directories: tuple[str, str], tmp_path: Path) -> Callable[..., tuple[list[dict], dict]]:
    """Return a function that evaluates the first model on eight problems and returns samples and summary."""
    rows = [{"prompt": "ab"[: 1 + n % 2] + "cd"[: n // 4], "answer": str(n)} for n in range(8)]
    data = DataSettings(source=write_rows(tmp_path / "problems.jsonl", rows))

    def run(name: str, **options: object) -> tuple[list[dict], dict]:
        settings = EvalSettings(model=settings_of(directories[0]), data=data, seed=3, **options)
        with StageRun.open(tmp_path / name, settings=settings, fingerprint="f", display=NoDisplay()) as stage_run:
            evaluate(settings, stage_run)
        artifact = tmp_path / name / "artifact"
        return read_rollouts(artifact / "samples.parquet"), json.loads((artifact / "summary.json").read_bytes())

    return run


def test_an_evaluation_keeps_and_sums_up_the_distance(
    directories: tuple[str, str], evaluated: Callable[..., tuple[list[dict], dict]]
) -> None:
    sampling = SamplingSettings(temperature=1.0, max_completion_length=8)
    rows, summary = evaluated("sampled", reference=directories[1], sampling=sampling, num_samples=4)
    ratios = [row["policy_logprob"] - row["ref_logprob"] for row in rows]
    assert summary["kl_is_estimate"] is True
    assert summary["reference"] == directories[1]
    assert summary["kl"]["sequence"]["mean"] == pytest.approx(np.mean(ratios))
    assert summary["kl"]["token"]["mean"] == pytest.approx(sum(ratios) / sum(row["num_tokens"] for row in rows))
    for row in rows:  # engine and forward agree at temperature 1
        assert row["policy_logprob"] / row["num_tokens"] == pytest.approx(row["logprob"], abs=1e-4)
    greedy = SamplingSettings(temperature=0.0, max_completion_length=8)
    _, summary = evaluated("greedy", reference=directories[1], sampling=greedy)
    assert summary["kl_is_estimate"] is False
    rows, summary = evaluated("alone", sampling=sampling)
    assert "policy_logprob" not in rows[0]
    assert "kl" not in summary


def test_a_model_is_no_distance_from_itself(
    directories: tuple[str, str], evaluated: Callable[..., tuple[list[dict], dict]]
) -> None:
    _, summary = evaluated("itself", reference=directories[0], sampling=SamplingSettings(max_completion_length=8))
    assert summary["kl"]["sequence"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
