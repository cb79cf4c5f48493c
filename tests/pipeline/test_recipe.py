"""Recipes: shared defaults, overrides, links between stages, and every mistake named with its line."""

import subprocess
import sys

import pytest

from posttrain.errors import ConfigError
from posttrain.pipeline.recipe import frozen_settings, load_recipe, single_stage
from posttrain.settings import CompareSettings, EvalSettings, GrpoSettings, SftSettings
from tests.conftest import write_rows
from tests.pipeline.conftest import load, problems

DEMO = """\
# a comment
name = "demo"
seed = 17
[model]
name_or_path = "nano"
dtype = "float32"
[data]
rows = 9
[stage.base]
type = "eval"
[stage.sft]
type = "sft"
learning_rate = 1e-3
data.rows = 4
[stage.sft_eval]
type = "eval"
init_from = "sft"
sampling.max_completion_length = 8
[stage.grpo]
type = "grpo"
init_from = "sft"
seed = 3
[stage.comparison]
type = "compare"
baseline = "base"
models = ["base", "sft_eval"]
"""


def test_stages_come_in_order_with_shared_defaults_below_their_own(tmp_path):
    recipe = load(tmp_path, DEMO)
    assert (recipe.name, recipe.seed) == ("demo", 17)
    assert [(stage.name, stage.type, stage.init_from) for stage in recipe.stages] == [
        ("base", "eval", None),
        ("sft", "sft", None),
        ("sft_eval", "eval", "sft"),
        ("grpo", "grpo", "sft"),
        ("comparison", "compare", None),
    ]
    base, sft, _, grpo, comparison = (stage.settings for stage in recipe.stages)
    assert isinstance(base, EvalSettings)
    assert isinstance(sft, SftSettings)
    assert isinstance(grpo, GrpoSettings)
    assert (base.model.dtype, base.data.rows, base.data.split, base.seed) == ("float32", 9, "test", 17)
    assert (sft.data.rows, sft.learning_rate, sft.seed) == (4, 1e-3, 17)
    assert (grpo.seed, grpo.data.rows) == (3, 9)
    assert comparison == CompareSettings(baseline="base", models=["base", "sft_eval"], seed=17)
    assert [(link.key, link.stage) for link in recipe.stages[4].links] == [("models", "base"), ("models", "sft_eval")]


SHARED_SOURCE = """\
[data]
source = "orca_dpo"
path = "r.toml"
held_out = 0.1
max_length = 99
columns.prompt = "question"
[stage.rm]
type = "rm"
[stage.own]
type = "dpo"
data.source = "ultrafeedback_binarized"
[stage.same]
type = "dpo"
data.source = "orca_dpo"
[stage.asked]
type = "eval"
task = "alignment"
rewards.longer_than = 1.0
[stage.default]
type = "eval"
"""


def test_what_is_said_of_a_shared_source_stays_with_it(tmp_path):
    """A stage that names another source, or a task that has one, takes the rest of the shared data alone."""
    path = write_rows(tmp_path / "orca.jsonl", [{"question": "1?", "chosen": "1", "rejected": "2"}])
    text = SHARED_SOURCE.replace("r.toml", path)
    data = {stage.name: stage.settings.data for stage in load(tmp_path, text).stages}
    for name in ("rm", "same", "default"):
        assert (data[name].source, data[name].path, data[name].held_out) == ("orca_dpo", path, 0.1)
    for name in ("own", "asked"):
        assert (data[name].path, data[name].held_out, data[name].columns) == (None, 0.0, {})
    assert data["own"].source == "ultrafeedback_binarized"
    assert "source" not in data["asked"].model_fields_set  # the task's own
    assert {each.max_length for each in data.values()} == {99}
    without = text.replace('source = "orca_dpo"\n', "", 1)
    assert load(tmp_path, without).stages[1].settings.data.path == path  # said of no source: of every stage's


def test_origins_name_line_flag_or_default(tmp_path):
    recipe = load(tmp_path, DEMO, "--stage.grpo.learning_rate", "1e-5", "--model.lora_r", "4", "--seed=2")
    grpo = recipe.stages[3]
    assert grpo.settings.learning_rate == 1e-5
    assert grpo.settings.model.lora_r == 4
    assert recipe.stages[0].settings.seed == 2
    assert grpo.origins["learning_rate"] == "--stage.grpo.learning_rate"
    assert grpo.origins["model.lora_r"] == "--model.lora_r"
    assert grpo.origins["model.dtype"] == f"{tmp_path}/r.toml:6"
    assert grpo.origins["kl_coef"] == "default"
    assert recipe.stages[0].origins["seed"] == "--seed"


def test_the_name_is_the_flags_then_the_files_then_the_files_stem(tmp_path):
    assert load(tmp_path, DEMO, "--name", "other").name == "other"
    assert load(tmp_path, DEMO.replace('name = "demo"\n', "")).name == "r"
    assert load_recipe(tmp_path / "r.toml", name="third").name == "third"
    with pytest.raises(ConfigError, match="a run is named with"):
        load_recipe(tmp_path / "r.toml", name="../up")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "learning_rate = 1e-3",
            "learning_rat = 1e-3",
            "r.toml:13: unknown key learning_rat; did you mean learning_rate?",
        ),
        ('type = "sft"', 'type = "stf"', "r.toml:12: no stage type 'stf'; did you mean sft?"),
        ('type = "sft"\n', "", "r.toml:12: stage sft: type is required"),
        ("seed = 17", "sed = 17", "r.toml:3: unknown key sed; did you mean seed?"),
        (
            "seed = 17",
            "learning_rate = 1.0",
            "r.toml:3: unknown key learning_rate; did you mean stage.sft.learning_rate?",
        ),
        ("seed = 17", "seed = -1", "r.toml:3: seed must be an integer of at least 0, not -1"),
        ("[data]\n", '[data]\nsplit = "train"\n', "r.toml:8: a split belongs to one stage"),
        ("[stage.sft_eval]", "[stage.Sft-eval]", "r.toml:16: a stage is named with small letters"),
        (
            'init_from = "sft"\nseed',
            'init_from = "sfd"\nseed',
            "stage grpo needs sfd, and there is no such stage; did you mean sft?",
        ),
        (
            'init_from = "sft"\nseed',
            'init_from = "base"\nseed',
            "stage grpo needs base, which is of type eval and makes no model",
        ),
        (
            'type = "sft"',
            'type = "rm"',
            "stage grpo needs sft, which is of type rm and makes no model",
        ),
        ('init_from = "sft"\nseed', 'init_from = "grpo"\nseed', "stage grpo needs grpo, which must come before it"),
        (
            'type = "sft"',
            'type = "sft"\ninit_from = "grpo"',
            "r.toml:13: stage sft needs grpo, which must come before it",
        ),
        (
            "seed = 3",
            'model.name_or_path = "x"',
            "r.toml:22: the model comes from init_from = sft; remove one of the two",
        ),
        (
            '["base", "sft_eval"]',
            '["base", "sft"]',
            "r.toml:26: stage comparison needs sft, which is of type sft and makes no evaluation",
        ),
        ('baseline = "base"', 'baseline = "sft"', "the baseline sft is none of models"),
        ('baseline = "base"', 'init_from = "sft"\nbaseline = "base"', "a stage of type compare starts from no model"),
        ('["base", "sft_eval"]', '["base"]', "models must be a list of at least 2, each a string"),
        ("[stage.base]", "[stage]\nx = 1\n[stage.base]", "a stage is a table"),
    ],
)
def test_mistakes(tmp_path, old, new, expected):
    assert old in DEMO
    assert expected in problems(tmp_path, DEMO.replace(old, new, 1))


def test_mistakes_in_flags(tmp_path):
    text = problems(
        tmp_path, DEMO, "--stage.gropo.kl_coef", "1", "--max_steps", "3", "--stage.grpo.num_generations", "1"
    )
    assert "--stage.gropo.kl_coef: no stage gropo here; did you mean grpo?" in text
    assert "--max_steps: unknown key max_steps; did you mean stage.sft.max_steps?" in text
    assert "--stage.grpo.num_generations: num_generations must be an integer of at least 2, not 1" in text


def test_all_stages_mistakes_come_at_once_and_a_shared_one_once(tmp_path):
    text = problems(tmp_path, DEMO.replace('dtype = "float32"', 'dtype = "int8"').replace("seed = 3", "kl_coef = -1"))
    assert text.count("dtype must be one of auto, float32, bfloat16") == 1
    assert "r.toml:22: kl_coef must be" in text


def test_a_stage_with_a_fault_hides_no_later_one_and_makes_up_none(tmp_path):
    text = problems(tmp_path, DEMO.replace("learning_rate = 1e-3", "learning_rate = -1.0"))
    assert "problems" not in text
    assert "must come before" not in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rewards = {}", "r.toml:22: stage grpo: grpo needs at least one reward"),
        ("rewards.r1_zer = 1.0", "r.toml:22: stage grpo: unknown reward r1_zer. Did you mean r1_zero?"),
        ("sampling.temperature = 0.0", "r.toml:22: stage grpo: grpo learns from different completions"),
        ("sampling.top_p = 0.9", "r.toml:22: stage grpo: grpo trains on the whole vocabulary's distribution"),
        ("model.lora_dropout = 0.1", "r.toml:22: stage grpo: model.lora_dropout makes the log-probs"),
        ('data.prompt_style = "boxd"', "r.toml:22: stage grpo: no prompt style boxd; did you mean boxed?"),
        ('data.source = "gsm9k"', "fix: --stage.grpo.data.source gsm8k"),
        (
            "data.held_out = 0.1",
            "r.toml:22: stage grpo: data.held_out is for sources with one split, and nano has train",
        ),
        ('data.source = "orca_dpo"\ndata.split = "test"', "fix: --stage.grpo.data.held_out 0.1"),
        ('data.filters.languages = ["xx"]', 'r.toml:22: stage grpo: data.filters.languages: no language "xx"; known: '),
        (
            "data.filters.refusal = true",
            "r.toml:22: unknown key data.filters.refusal; did you mean data.filters.refusals?",
        ),
        ('data.source = "gsm8k"\ndata.path = "none.jsonl"', "r.toml:23: stage grpo: gsm8k: no such file or directory"),
        ('data.source = "mine.jsonl"\ndata.path = "none.jsonl"', "r.toml:23: stage grpo: data.path is where a named"),
    ],
)
def test_what_a_stage_would_refuse_is_refused_before_anything_starts(tmp_path, line, expected):
    text = problems(tmp_path, DEMO.replace("seed = 3", line))
    assert expected in text
    assert "problems" not in text


def test_an_evaluations_task_and_samples_are_checked_too(tmp_path):
    text = problems(tmp_path, DEMO.replace('type = "eval"', 'type = "eval"\ntask = "nan"\nnum_samples = 4', 1))
    assert "r.toml:11: stage base: unknown task nan. Did you mean nano?" in text
    assert "fix: --stage.base.task nano" in text
    assert "r.toml:12: stage base: 4 samples of each problem at sampling.temperature = 0 are all the same" in text


def test_a_blend_has_parts_of_the_corpus_and_some_weight():
    flags = ["--blend.poems", "1.0", "--mid_training_blend.worked", "0.0"]
    with pytest.raises(ConfigError) as caught:
        single_stage("pretrain", None, flags, name="base")
    assert "--blend.poems: unknown corpus part poems" in str(caught.value)
    assert "--mid_training_blend.worked: every part of mid_training_blend has the weight 0" in str(caught.value)


def test_a_directory_without_the_split_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    flags = ["--data.source", str(tmp_path), "--data.split", "test"]
    with pytest.raises(ConfigError, match=r'--data.source: .* has no file for the split "test"'):
        single_stage("sft", None, flags, name="sft")


def test_a_recipe_without_stages_is_refused(tmp_path):
    assert "a recipe has stages" in problems(tmp_path, "# nothing\n")


def test_a_single_stage_is_a_recipe_of_one(tmp_path):
    (tmp_path / "s.toml").write_text("learning_rate = 1e-3\nseed = 5\n")
    recipe = single_stage("sft", tmp_path / "s.toml", ["--data.rows", "3"], name="try")
    (stage,) = recipe.stages
    assert (recipe.name, recipe.seed, stage.name, stage.type) == ("try", 5, "sft", "sft")
    assert stage.settings.data.rows == 3
    load(tmp_path, DEMO)
    with pytest.raises(ConfigError, match="is a recipe, not the settings of one stage"):
        single_stage("sft", tmp_path / "r.toml", [], name="try")


def test_what_sets_only_memory_or_speed_is_not_frozen(tmp_path):
    def grpo(*flags: str) -> dict:
        return frozen_settings(load(tmp_path, DEMO, *flags).stages[3])

    assert grpo("--stage.grpo.max_tokens_per_micro_batch", "8", "--stage.grpo.engine.max_sequences", "2") == grpo()
    assert grpo("--stage.grpo.reward_workers.deadline", "1.0") == grpo()
    assert grpo("--stage.grpo.kl_coef", "0.5") != grpo()
    assert grpo("--stage.grpo.rewards.r1_zero", "0.5") != grpo()


def test_reading_a_recipe_needs_no_torch():
    code = "import sys, posttrain.pipeline.recipe; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
