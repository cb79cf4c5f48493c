"""An update of DPO, reward modelling and SFT beside TRL's own trainers: same rows, same adapter, same gradients.

TRL's side is its whole `train()`: tokenization, collator, accumulation, loss. Ours is the stage's renderer, loss share
and Updater, cut into micro-batches. Gradients are those that reach the optimizer, in float32. Where the two mean
different things, the test's docstring says what differs; ARCHITECTURE.md has them in a table. GRPO's updates are in
`test_trl_parity_of_grpo.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from posttrain.data.chat import render_training_tree
from posttrain.data.pairs import branch_labels, render_preference
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows
from posttrain.models.lm import LoadedModel, load_model, save_model
from posttrain.models.scores import add_score_head, completion_scores
from posttrain.records import TokenTree
from posttrain.settings import (
    DataSettings,
    DpoSettings,
    ModelSettings,
    OptimizedStageSettings,
    RmSettings,
    SftSettings,
)
from posttrain.stages.checks import row_kinds
from posttrain.stages.dpo import ReferenceLogprobs, preference_data, preference_share
from posttrain.stages.optimize import LossShare, Updater, token_mean_loss
from posttrain.stages.rm import score_share

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(find_spec("trl") is None, reason='trl is not installed: pip install -e ".[peers]"'),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # transformers' own, of what trl calls
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]

TOLERANCE = 2e-5  # of the loss, and of the norm of each tensor's gradient; both sides round in float32
SCALE = 0.05  # of the trained weights: log-ratios of a few nats a completion
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
PAIRS = [
    {"prompt": "User: 3 plus 4?\nAssistant:", "chosen": " 3 + 4 = 7", "rejected": " 3 * 4 = 12, so it is 12"},
    {"prompt": "User: Tom has 12 eggs and eats 5.\nAssistant:", "chosen": " 7 eggs are left", "rejected": " 17"},
    {"prompt": "Say 9:", "chosen": " 9", "rejected": " No. I will not say any of them, not 1"},
    {"prompt": "User: 20 minus 6?\nAssistant:", "chosen": " 20 - 6 = 14, so the answer is 14", "rejected": " 8 8"},
]
JUDGED = [
    {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
    for row, good in zip(PAIRS, (True, False, False, True), strict=True)
]
COMPLETED = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@dataclass(frozen=True)
class Step:
    """What one optimizer update saw."""

    loss: float
    gradients: Mapping[str, Tensor]  # of each trained tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


def assert_same(found: Step, expected: Step, *, tolerance: float = TOLERANCE, losses: bool = True) -> None:
    if losses:
        assert found.loss == pytest.approx(expected.loss, rel=tolerance, abs=1e-6)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert gradient.norm() > 0, name
        assert (found.gradients[name] - gradient).norm() <= tolerance * gradient.norm(), name


def mixed(*parts: tuple[float, Step]) -> Step:
    """Return the weighted sum of steps."""
    names = parts[0][1].gradients
    gradients = {name: sum(weight * step.gradients[name] for weight, step in parts) for name in names}
    return Step(sum(weight * step.loss for weight, step in parts), gradients)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in one order; peft calls a trained head's copy by a longer name."""
    names = {name.replace("modules_to_save.default.", ""): p for name, p in model.named_parameters() if p.requires_grad}
    return dict(sorted(names.items()))


@torch.no_grad()
def draw(model: nn.Module, seed: int) -> None:
    """Set the trained weights to numbers that depend on the seed alone: no policy is its own reference."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.copy_(SCALE * torch.randn(parameter.shape, generator=generator))


@contextmanager
def noted_gradients(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Give a dict that holds the gradients of the last optimizer step inside the context."""
    noted: dict[str, Tensor] = {}

    def note(*_: Any) -> None:
        noted.update({name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None})

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield noted
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def saved_model(
    make_model: Callable[..., Any], model_directory: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Return a function from family to the directory of a tiny model, far from uniform, with the nano tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}

    @cache
    def save(family: str) -> str:
        directory = tmp_path_factory.mktemp("peer") / family
        make_model(family, vocab_size=400, max_position_embeddings=512, **ends).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return str(directory)

    return save


@pytest.fixture
def llama(saved_model: Callable[[str], str]) -> str:
    return saved_model("llama")


# --- our side --------------------------------------------------------------------------------------------------


def stage_settings(kind: type[Any], base: str, **options: Any) -> Any:
    lora = {"lora_r": LORA["r"], "lora_alpha": LORA["lora_alpha"]}
    model = ModelSettings(name_or_path=base, dtype="float32", device="cpu", **lora)
    return kind(model=model, max_grad_norm=1e9, max_tokens_per_micro_batch=80, **options)


def read(rows: Sequence[Mapping[str, Any]], directory: Path, kinds: Sequence[Any] = ()) -> list[Row]:
    """Return the rows as our reader gives them from a file."""
    file = directory / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return load_rows(DataSettings(source=str(file)), seed=0, kinds=kinds)


def our_step(
    loaded: LoadedModel,
    settings: OptimizedStageSettings,
    trees: Sequence[TokenTree],
    share: LossShare,
    **options: Any,
) -> Step:
    updater = Updater(loaded, settings, num_updates=1)
    with noted_gradients(loaded.model) as gradients:
        metrics = updater.update(trees, share, **options)
    return Step(metrics["loss"], gradients, metrics)


def our_dpo(base: str, rows: Sequence[Mapping[str, Any]], directory: Path, *, seed: int = 1, **options: Any) -> Step:
    settings = stage_settings(DpoSettings, base, **options)
    loaded = load_model(settings.model, seed=0)
    reference = ReferenceLogprobs(loaded, {}, settings, run=None)  # only a cache would ask the run
    draw(loaded.model, seed)
    pairs = read(rows, directory, row_kinds(settings))
    trees = [render_preference(row, loaded.tokenizer) for row in pairs]
    kl = reference.kl(loaded, trees, 512) if "kto" in settings.losses else None
    data = preference_data(trees, [branch_labels(row) for row in pairs], reference.of([], trees), kl)
    return our_step(loaded, settings, trees, preference_share(data, settings), whole_trees=True)


def our_rm(base: str, rows: Sequence[Mapping[str, Any]], directory: Path, **options: Any) -> Step:
    settings = stage_settings(RmSettings, base, **options)
    loaded = load_model(settings.model, seed=0)
    add_score_head(loaded, seed=0)
    draw(loaded.model, seed=1)
    pairs = read(rows, directory, row_kinds(settings))
    trees = [render_preference(row, loaded.tokenizer) for row in pairs]
    margins = [float(row.columns.get("margin", 0.0)) for row in pairs]
    share = score_share(margins, settings)
    return our_step(loaded, settings, trees, share, forward=completion_scores, whole_trees=True)


def our_sft(base: str, rows: Sequence[Mapping[str, Any]], directory: Path) -> Step:
    settings = stage_settings(SftSettings, base)
    loaded = load_model(settings.model, seed=0)
    draw(loaded.model, seed=1)
    trees = [render_training_tree(row, loaded.tokenizer) for row in read(rows, directory)]
    return our_step(loaded, settings, trees, token_mean_loss(trees))


# --- TRL's side ------------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """Sets the trained weights before each step, and keeps the last loss that the trainer logs, unrounded."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.loss = float("nan")
        self._seeds = seeds

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        draw(model, self._seeds[state.global_step])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.loss = logs.get("loss", self.loss)


def trl_step(
    name: str,
    base: Any,
    rows: Sequence[Mapping[str, Any]],
    directory: Path,
    *,
    seeds: Sequence[int] = (1,),
    accumulate: int = 1,
    change: Callable[[Any], None] = lambda trainer: None,
    arguments: Mapping[str, Any] | None = None,
    **options: Any,
) -> Step:
    """Return the last step of TRL's `{name}Trainer` on all rows, a step for each seed of the trained weights.

    `base` is the directory of a model or the model itself; `options` are those of `{name}Config`, `arguments` those of
    the trainer, and `change` has the trainer before it trains.
    """
    import trl
    from trl.experimental import cpo, orpo

    home = {"CPO": cpo, "ORPO": orpo}.get(name, trl)
    defaults = {
        "output_dir": str(directory),
        "per_device_train_batch_size": len(rows) // accumulate,
        "gradient_accumulation_steps": accumulate,
        "train_sampling_strategy": "sequential",
        "max_steps": len(seeds),
        "max_grad_norm": 0.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    adapter = None if isinstance(base, PeftModel) else LoraConfig(**LORA, task_type="CAUSAL_LM")
    if name == "Reward":
        adapter = LoraConfig(**LORA, task_type="SEQ_CLS", modules_to_save=["score"])
    model = AutoModelForCausalLM.from_pretrained(base) if isinstance(base, str) else base
    source = base if isinstance(base, str) else base.config._name_or_path
    watch = Watch(seeds)
    trainer = getattr(home, f"{name}Trainer")(
        model,
        args=getattr(home, f"{name}Config")(**defaults | options),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(source),
        callbacks=[watch],
        peft_config=adapter,
        **arguments or {},
    )
    change(trainer)
    with noted_gradients(trainer.model) as gradients:
        trainer.train()
    return Step(watch.loss, gradients)


# --- DPO and its relatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_dpo_is_that_of_trl(saved_model: Callable[[str], str], tmp_path: Path, family: str) -> None:
    base = saved_model(family)
    expected = trl_step("DPO", base, PAIRS, tmp_path, loss_type="sigmoid", beta=0.1)
    assert_same(our_dpo(base, PAIRS, tmp_path, beta=0.1), expected)
    for other in ({"beta": 0.101}, {"seed": 2}, {"losses": {"hinge": 1.0}}):  # each is noticed
        with pytest.raises(AssertionError):
            assert_same(our_dpo(base, PAIRS, tmp_path, **{"beta": 0.1, **other}), expected)


@pytest.mark.parametrize(
    ("losses", "beta", "label_smoothing"),
    [
        ({"sigmoid_norm": 1.0}, 5.0, 0.0),
        ({"robust": 1.0}, 0.1, 0.2),
        ({"ipo": 1.0}, 0.1, 0.0),
        ({"hinge": 1.0}, 0.3, 0.0),
        ({"sigmoid": 1.0, "sft": 0.3}, 0.1, 0.0),
        ({"sigmoid": 0.8, "ipo": 0.5, "hinge": 0.2, "sft": 1.0}, 0.2, 0.0),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_dpo_losses_are_those_of_trl(
    llama: str, tmp_path: Path, losses: dict[str, float], beta: float, label_smoothing: float
) -> None:
    options = {"loss_type": list(losses), "loss_weights": list(losses.values())}
    expected = trl_step("DPO", llama, PAIRS, tmp_path, beta=beta, label_smoothing=label_smoothing, **options)
    found = our_dpo(llama, PAIRS, tmp_path, losses=losses, beta=beta, label_smoothing=label_smoothing)
    assert_same(found, expected)


def test_smoothed_dpo_is_a_sum_of_two_of_trls(llama: str, tmp_path: Path) -> None:
    """TRL 1.16 gives `label_smoothing` to robust DPO and ignores it in sigmoid; ours makes sigmoid conservative DPO.

    (1 - e) L + e L' of a pair and its swap, where TRL's robust loss is ((1 - e) L - e L') / (1 - 2e).
    """
    smoothing = 0.2
    options = {"loss_type": ["sigmoid", "robust"], "loss_weights": [2 * (1 - smoothing), 2 * smoothing - 1]}
    expected = trl_step("DPO", llama, PAIRS, tmp_path, beta=0.1, label_smoothing=smoothing, **options)
    assert_same(our_dpo(llama, PAIRS, tmp_path, beta=0.1, label_smoothing=smoothing), expected)
    ignored = trl_step("DPO", llama, PAIRS, tmp_path, beta=0.1, label_smoothing=smoothing)
    assert_same(our_dpo(llama, PAIRS, tmp_path, beta=0.1), ignored)


def test_a_continued_adapter_is_the_reference_as_with_trl(llama: str, tmp_path: Path) -> None:
    loaded = load_model(stage_settings(DpoSettings, llama).model, seed=0)
    draw(loaded.model, seed=3)
    adapter = str(tmp_path / "adapter")
    save_model(loaded, adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), adapter, is_trainable=True)
    expected = trl_step("DPO", model, PAIRS, tmp_path, beta=0.1)
    assert_same(our_dpo(adapter, PAIRS, tmp_path, beta=0.1), expected)
    with pytest.raises(AssertionError):
        assert_same(our_dpo(llama, PAIRS, tmp_path, beta=0.1), expected)


def test_accumulated_dpo(llama: str, tmp_path: Path) -> None:
    """TRL averages the means of its forwards, ours is the mean over the step: the same of pairs, not of tokens.

    So the losses of pairs agree, and TRL's sft term is the mean of ours on each forward's rows.
    """
    accumulated = partial(trl_step, "DPO", llama, PAIRS, tmp_path, beta=0.1, accumulate=2)
    assert_same(our_dpo(llama, PAIRS, tmp_path, beta=0.1), accumulated())
    with_sft = {"losses": {"sigmoid": 1.0, "sft": 1.0}, "beta": 0.1}
    expected = accumulated(loss_type=["sigmoid", "sft"])
    parts = [(0.5, our_dpo(llama, part, tmp_path, **with_sft)) for part in (PAIRS[:2], PAIRS[2:])]
    assert_same(mixed(*parts), expected)
    with pytest.raises(AssertionError):
        assert_same(our_dpo(llama, PAIRS, tmp_path, **with_sft), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_simpo_is_that_of_trl(llama: str, tmp_path: Path, alpha: float) -> None:
    """CPOTrainer's `cpo_alpha` is the weight of our sft term; it smooths the labels of SimPO too, ours does not."""
    options = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": alpha}
    losses = {"simpo": 1.0, "sft": alpha} if alpha else {"simpo": 1.0}
    found = our_dpo(llama, PAIRS, tmp_path, losses=losses, beta=2.0, simpo_gamma=0.7)
    assert_same(found, trl_step("CPO", llama, PAIRS, tmp_path, **options))


def test_orpo_is_that_of_trl_but_for_the_likelihood(llama: str, tmp_path: Path) -> None:
    """TRL's likelihood term is a mean over all tokens of the forward, prompts too; ours a mean of each completion's.

    The paper's (eq. 6 of arXiv 2403.07691) is of the completion. They agree where prompts are one token and completions
    equally long; elsewhere the odds term does, which is what a change of beta changes.
    """
    rows = [
        {"prompt": "3", "chosen": "47 9", "rejected": "12345678"},
        {"prompt": "6", "chosen": "2 05", "rejected": "1"},
        {"prompt": "0", "chosen": "1234", "rejected": "777 777"},
    ]
    assert_same(
        our_dpo(llama, rows, tmp_path, losses={"orpo": 1.0}, beta=0.5),
        trl_step("ORPO", llama, rows, tmp_path, beta=0.5),
    )
    found = [our_dpo(llama, PAIRS, tmp_path, losses={"orpo": 1.0}, beta=beta) for beta in (3.0, 1.0)]
    expected = [trl_step("ORPO", llama, PAIRS, tmp_path, beta=beta) for beta in (3.0, 1.0)]
    assert_same(mixed((1, found[0]), (-1, found[1])), mixed((1, expected[0]), (-1, expected[1])), tolerance=1e-4)
    assert found[0].loss != pytest.approx(expected[0].loss, rel=1e-3)


def test_kto_is_that_of_trl(llama: str, tmp_path: Path) -> None:
    """TRL estimates the KL from each prompt with the completion before it, ours with the one after it.

    So our rows are TRL's in reverse order. TRL's estimate is of one forward, and takes any neighbour; ours is of the
    step, and of completions of other prompts alone.
    """
    weights = {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    found = our_dpo(llama, JUDGED[::-1], tmp_path, seed=3, losses={"kto": 1.0}, **weights)
    assert found.metrics["kl"] > 0.1
    assert_same(found, trl_step("KTO", llama, JUDGED, tmp_path, seeds=[3], **weights))
    with pytest.raises(AssertionError):
        assert_same(found, trl_step("KTO", llama, JUDGED[::-1], tmp_path, seeds=[3], **weights))


@pytest.mark.parametrize("trainer", ["DPO", "Reward"])
def test_trl_goes_on_after_the_end_of_a_conversation(llama: str, tmp_path: Path, trainer: str) -> None:
    """What the template writes after the last end token, often a line break, TRL trains too, and reads the score there.

    Ours ends with the end token, the last that is ever sampled. Text rows end with it on both sides.
    """
    rows = [
        {"prompt": said("user", "3 plus 4?"), "chosen": said("assistant", "7"), "rejected": said("assistant", "no 8")},
        {"prompt": said("user", "Say 9."), "chosen": said("assistant", "9"), "rejected": said("assistant", "0")},
    ]
    tokenizer = AutoTokenizer.from_pretrained(llama)
    base = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1) if trainer == "Reward" else llama
    prepared: list[Any] = []
    trl_step(trainer, base, rows, tmp_path, change=lambda trainer: prepared.extend(trainer.train_dataset))
    line_break = tokenizer("\n")["input_ids"]
    for row, theirs in zip(read(rows, tmp_path, ["preference"]), prepared, strict=True):
        tree = render_preference(row, tokenizer)
        before = list(tree.prompt_ids) if trainer == "Reward" else []
        for branch, side in zip(tree.branches, ("chosen_ids", "rejected_ids"), strict=True):
            assert branch.ids[-1] == tokenizer.eos_token_id
            assert theirs[side] == [*before, *branch.ids, *line_break]


# --- reward modelling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("margins", "centre"), [(None, 0.0), ((0.5, 0.0, 2.0, 1.0), 0.05)])
def test_reward_modelling_is_that_of_trl(
    llama: str, tmp_path: Path, margins: tuple[float, ...] | None, centre: float
) -> None:
    rows = PAIRS if margins is None else [row | {"margin": m} for row, m in zip(PAIRS, margins, strict=True)]
    head = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    expected = trl_step("Reward", head, rows, tmp_path, center_rewards_coefficient=centre or None, accumulate=2)
    assert any("score" in name for name in expected.gradients)
    assert_same(our_rm(llama, rows, tmp_path, center_rewards_coefficient=centre), expected)
    with pytest.raises(AssertionError):
        assert_same(our_rm(llama, rows, tmp_path, center_rewards_coefficient=centre + 0.001), expected)


# --- fine-tuning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [COMPLETED, [{"text": row["prompt"] + row["completion"]} for row in COMPLETED]])
def test_fine_tuning_is_that_of_trl(llama: str, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """The mean over the step's tokens, in forwards of unequal length; of a prompt and completion the latter's."""
    expected = trl_step("SFT", llama, rows, tmp_path, accumulate=2)
    assert_same(our_sft(llama, rows, tmp_path), expected)
    means = mixed(*[(0.5, our_sft(llama, part, tmp_path)) for part in (rows[:2], rows[2:])])
    with pytest.raises(AssertionError):
        assert_same(means, expected)
