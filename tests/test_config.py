"""Files and flags become settings; every wrong one is named with its place, all at once."""

import json
from pathlib import Path

import pytest

from posttrain.config import (
    field_help,
    fingerprint,
    key_lines,
    parse_flags,
    read_toml,
    refuse,
    resolve,
    under,
)
from posttrain.errors import ConfigError
from posttrain.settings import CompareSettings, EvalSettings, GrpoSettings, PretrainSettings, Settings, SftSettings


def build(settings_class: type[Settings], toml: str = "", flags: list[str] | None = None, tmp: Path | None = None):
    """Return resolved settings, or raise with every problem."""
    problems: list[str] = []
    entries = []
    if tmp is not None:
        (tmp / "c.toml").write_text(toml)
        entries = read_toml(tmp / "c.toml")
    entries += parse_flags(flags or [], problems)
    resolved = resolve(settings_class, entries, problems, where="c.toml")
    refuse(problems)
    assert resolved is not None
    return resolved


def message(settings_class: type[Settings], toml: str = "", flags: list[str] | None = None, tmp: Path | None = None):
    with pytest.raises(ConfigError) as caught:
        build(settings_class, toml, flags, tmp)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{tmp}/", "")


def test_the_line_of_every_key():
    text = (
        '# comment\na = 1\n\n[t.u] # table\nb = """\nc = 2\n[no.table]\n"""\nd = [\n  1, # x = 3\n  2,\n]\n'
        '"quoted.key" = {x = 1, y = 2}\ne.f = true\n[empty]\n'
    )
    lines = key_lines(text)
    assert lines == {
        ("a",): 2,
        ("t",): 4,
        ("t", "u"): 4,
        ("t", "u", "b"): 5,
        ("t", "u", "d"): 9,
        ("t", "u", "quoted.key"): 13,
        ("t", "u", "quoted.key", "x"): 13,
        ("t", "u", "quoted.key", "y"): 13,
        ("t", "u", "e"): 14,
        ("t", "u", "e", "f"): 14,
        ("empty",): 15,
    }


def test_precedence_default_file_flag_and_the_origin_of_each(tmp_path):
    resolved = build(SftSettings, "learning_rate = 1e-3\nrows_per_step = 4\n", ["--rows_per_step", "8"], tmp_path)
    assert (resolved.settings.learning_rate, resolved.settings.rows_per_step) == (1e-3, 8)
    assert resolved.origins["learning_rate"] == f"{tmp_path}/c.toml:1"
    assert resolved.origins["rows_per_step"] == "--rows_per_step"
    assert resolved.origins["model.lora_r"] == "default"


def test_every_leaf_has_an_origin():
    resolved = build(GrpoSettings)
    assert set(resolved.origins) == {row.key for row in field_help(GrpoSettings)}
    assert resolved.settings == GrpoSettings()


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--max_steps", "20"], "max_steps", 20),
        (["--max-steps=20"], "max_steps", 20),
        (["--learning_rate", "1e-5"], "learning_rate", 1e-5),
        (["--learning_rate", "1"], "learning_rate", 1.0),
        (["--mask_truncated"], "mask_truncated", True),
        (["--mask_truncated", "false"], "mask_truncated", False),
        (["--sampling.stop", '["x", "</answer>"]'], "sampling.stop", ["x", "</answer>"]),
        (["--rewards.r1_zero", "0.5"], "rewards", {"r1_zero": 0.5}),
        (["--rewards.other", "1"], "rewards", {"other": 1.0}),
        (["--rewards", '{"a": 1, "b": 0.5}'], "rewards", {"a": 1.0, "b": 0.5}),
        (["--rewards", "{a = 1}", "--rewards.b", "2"], "rewards", {"a": 1.0, "b": 2.0}),
        (["--data.rows", "none"], "data.rows", None),
        (["--data.rows", "7"], "data.rows", 7),
        (["--model.lora_target_modules", "all-linear"], "model.lora_target_modules", "all-linear"),
        (["--model.lora_target_modules", '["q_proj"]'], "model.lora_target_modules", ["q_proj"]),
        (["--model.name_or_path", "123"], "model.name_or_path", "123"),
        (["--advantage_scale", "none"], "advantage_scale", "none"),
    ],
)
def test_flags_are_read_as_their_fields_type(flags, field, value):
    found = build(GrpoSettings, flags=flags).settings
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_a_nested_table_starts_from_its_parents_default(tmp_path):
    settings = build(EvalSettings, "[sampling]\nmax_completion_length = 9\n[data]\nrows = 3\n", tmp=tmp_path).settings
    assert settings.sampling.temperature == 0.0  # SamplingSettings alone has 1.0
    assert settings.data.split == "test"


def test_fields_that_nobody_wrote_count_as_unset(tmp_path):
    data = build(EvalSettings, "[data]\nrows = 3\n", ["--task", "gsm8k"], tmp_path).settings.data
    assert data.model_fields_set == {"split", "rows"}  # an evaluation takes its task's source where none is set
    assert build(EvalSettings, flags=["--data.source", "nano"]).settings.data.model_fields_set == {"split", "source"}
    assert build(EvalSettings).settings == EvalSettings()


def test_a_written_table_of_rewards_replaces_the_default(tmp_path):
    assert build(GrpoSettings, "[rewards]\nformat = 1\n", tmp=tmp_path).settings.rewards == {"format": 1.0}
    both = build(GrpoSettings, "[rewards]\nformat = 1\n", ["--rewards.r1_zero", "2"], tmp_path).settings.rewards
    assert both == {"format": 1.0, "r1_zero": 2.0}


def test_an_integer_for_a_number_is_accepted_and_equal(tmp_path):
    one, other = (build(SftSettings, f"learning_rate = {text}\n", tmp=tmp_path).settings for text in ("1", "1.0"))
    assert one == other
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("learning_rat = 1\n", "c.toml:1: unknown key learning_rat; did you mean learning_rate?"),
        (
            "\n[sampling]\ntemprature = 1\n",
            "c.toml:3: unknown key sampling.temprature; did you mean sampling.temperature?",
        ),
        ("temperature = 1\n", "c.toml:1: unknown key temperature; did you mean sampling.temperature?"),
        ("[samplig]\ntop_p = 1\n", "c.toml:2: unknown key samplig.top_p; did you mean sampling.top_p?"),
        (
            'learning_rate = "1e-5"\n',
            'learning_rate must be a number above 0, not "1e-5"; write it without quotes: 1e-5',
        ),
        ("learning_rate = 0\n", "learning_rate must be a number above 0, not 0"),
        ("learning_rate = inf\n", "learning_rate must be a number above 0, not inf"),
        ("learning_rate = nan\n", "learning_rate must be a number above 0, not nan"),
        ("learning_rate = true\n", "learning_rate must be a number above 0, not true"),
        ("max_steps = 2.0\n", "max_steps must be an integer of at least 1, not 2.0"),
        ('mask_truncated = "true"\n', "mask_truncated must be true or false"),
        (
            'advantage_scale = "group-std"\n',
            'one of group_std, batch_std, none, not "group-std"; did you mean "group_std"?',
        ),
        ('model = "gpt2"\n', "c.toml:1: model is a table with keys of its own: name_or_path, "),
        ("[kl_coef]\nx = 1\n", "c.toml:2: unknown key kl_coef.x: kl_coef is a number of at least 0, not a table"),
        ('[rewards]\na = "x"\n', 'c.toml:2: rewards.a must be a number, not "x"'),
        (
            "[model]\nlora_target_modules = 3\n",
            "model.lora_target_modules must be a string or a list, each a string, not 3",
        ),
        ("[sampling]\nstop = [1]\n", "c.toml:2: sampling.stop must be a list, each a string, not [1]"),
        ("[sampling]\ntop_p = 1.5\n", "sampling.top_p must be a number above 0 and of at most 1, not 1.5"),
    ],
)
def test_messages(toml, expected, tmp_path):
    assert expected in message(GrpoSettings, toml, tmp=tmp_path)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--learning_rat", "1"], "--learning_rat: unknown key learning_rat; did you mean learning_rate?"),
        (["--model", "gpt2"], "did you mean --model.name_or_path gpt2?"),
        (["--max_steps", "--kl_coef", "1"], "--max_steps: needs a value: an integer of at least 1"),
        (["--max_steps", "-3"], "--max_steps: max_steps must be an integer of at least 1, not -3"),
        (["--max_steps", "many"], '--max_steps: max_steps must be an integer of at least 1, not "many"'),
        (["nonsense"], "unexpected 'nonsense': a setting is written --key value"),
    ],
)
def test_messages_about_flags(flags, expected):
    assert expected in message(GrpoSettings, flags=flags)


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        (
            "per_device_train_batch_size = 8\ngradient_accumulation_steps = 4\nnum_generations = 8\n",
            "prompts_per_step = 4 (8 a device x 4 micro-batches / 8 generations); memory is set by",
        ),
        (
            "per_device_train_batch_size = 2\nnum_generations = 8\n",
            "prompts_per_step = 1 (2 a device x 1 micro-batches / 8 generations)",
        ),
        ("num_train_epochs = 1\n", "max_steps = epochs x rows of data / prompts_per_step"),
        ("num_epochs = 1\n", "max_steps = epochs x rows of data / prompts_per_step"),
        ("beta = 0.1\n", "beta is DPO's temperature; the KL penalty is kl_coef"),
        ('report_to = "wandb"\n', "metrics.jsonl"),
        ("push_to_hub = true\n", "hf upload"),
        ("epsilon = 0.2\n", "epsilon_low and epsilon_high"),
        ("max_prompt_length = 5\n", "data.max_length"),
        ('loss_type = "dapo"\n', "loss_aggregation"),
        ("scale_rewards = false\n", "advantage_scale"),
        ("use_vllm = true\n", "engine.name"),
    ],
)
def test_foreign_keys_get_a_pointer(toml, expected, tmp_path):
    assert expected in message(GrpoSettings, toml, tmp=tmp_path)


def test_rows_are_counted_for_a_stage_without_groups(tmp_path):
    text = message(SftSettings, "per_device_train_batch_size = 2\ngradient_accumulation_steps = 4\n", tmp=tmp_path)
    assert "rows_per_step = 8 (2 a device x 4 micro-batches)" in text
    text = message(PretrainSettings, "per_device_train_batch_size = 2\ngradient_accumulation_steps = 4\n", tmp=tmp_path)
    assert "documents_per_step = 8 (2 a device x 4 micro-batches)" in text
    assert "num_train_epochs" in message(SftSettings, "num_epochs = 1\n", tmp=tmp_path)


def test_a_dash_is_kept_in_the_names_of_a_free_table():
    settings = build(
        GrpoSettings, flags=["--data.columns.gold-answer", "final-answer", "--learning-rate", "1"]
    ).settings
    assert settings.data.columns == {"gold-answer": "final-answer"}
    assert settings.learning_rate == 1.0


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    (tmp_path / "c.toml").write_bytes(b'seed = 1\nname = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"c\.toml:2 is not valid UTF-8"):
        read_toml(tmp_path / "c.toml")


def test_all_problems_come_at_once(tmp_path):
    text = message(GrpoSettings, "learning_rat = 1\nkl_coef = -1\n[data]\nrows = 0\n", ["--seed", "x"], tmp_path)
    assert text.startswith("4 problems")
    assert all(part in text for part in ("c.toml:1", "c.toml:2", "c.toml:4", "--seed"))


def test_required_keys_are_asked_for():
    assert message(CompareSettings).count("is required") == 2


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = \n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 1"):
        read_toml(tmp_path / "bad.toml")


def test_the_fingerprint_is_fixed_and_tells_settings_apart():
    assert fingerprint({"b": [1, 2.5], "a": "x"}) == fingerprint(json.loads('{"a": "x", "b": [1, 2.5]}'))
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert fingerprint(SftSettings()) != fingerprint(SftSettings(seed=1))


def test_help_keeps_a_parents_text_and_shows_the_own_default():
    rows = {row.key: row for row in field_help(EvalSettings)}
    assert rows["data.split"].default == '"test"'
    assert rows["sampling.temperature"].default == "0.0"
    assert "Peak" in {row.key: row for row in field_help(SftSettings)}["learning_rate"].doc


def test_under_takes_one_table(tmp_path):
    (tmp_path / "c.toml").write_text("[stage.a]\nx = 1\n[stage.b]\ny = 2\n")
    assert [entry.key for entry in under(read_toml(tmp_path / "c.toml"), "stage", "b")] == [("y",)]
