"""The command line: fast help, usage errors in words, exit codes, and what the verbs print."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.cli import STAGE_HELP
from posttrain.errors import DataError, PosttrainError, Stopped
from posttrain.pipeline.stages import STAGE_TYPES, StageType
from posttrain.settings import SftSettings
from tests.conftest import call

HEAVY = {"torch", "transformers", "datasets", "peft", "pyarrow", "numpy", "scipy"}


def fails(capsys, *arguments: str) -> tuple[int, str]:
    code = call(*arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.err


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in ("run", "grpo", "generate", "doctor"))]
)
def test_help_imports_no_library(arguments):
    code = (
        "import sys\nfrom posttrain.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"sys.stderr.write(' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "Usage: posttrain" in done.stdout


@pytest.mark.parametrize("verb", STAGE_HELP)
def test_help_of_a_stage_lists_every_setting(verb, capsys):
    assert call(verb, "--help") == 0
    text = capsys.readouterr().out
    for name in STAGE_TYPES[verb].settings.model_fields:
        assert f"--{name}" in text
    assert "--model.lora_r" in text
    assert "default" in text


def test_help_shows_a_nested_default_of_the_stage(capsys):
    call("eval", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert 'train, validation or test. (a string; default "test")' in text


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["grop"], 2, 'Did you mean "grpo"?'),
        (["sft", "--learning_rat", "1"], 2, "--learning_rat: unknown key learning_rat; did you mean learning_rate?"),
        (["sft", "--overwrit"], 2, "unknown option --overwrit; did you mean --overwrite?"),
        (["sft", "--model", "gpt2"], 2, "did you mean --model.name_or_path gpt2?"),
        (["sft", "--config", "none.toml"], 2, "cannot read none.toml: No such file or directory"),
        (["run", "none.toml"], 2, "cannot read none.toml"),
        (["run"], 2, "requires an argument"),
        (["sft", "--name", "a/b"], 2, "a run is named with letters"),
        (["generate", "--model", "nano", "--temprature", "1"], 2, "did you mean temperature?"),
        (["compare", "none"], 2, "no directory none"),
        (["doctor", "--jso"], 2, "Did you mean --json?"),
    ],
)
def test_usage_errors(arguments, code, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, text = fails(capsys, *arguments)
    assert found == code
    assert text.startswith("error: ")
    assert expected in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [DataError("rows are bad", fix="mend them"), Stopped("stopped at 3")])
def test_an_error_ends_with_its_code_and_its_fix_and_a_traceback_only_on_demand(
    error: PosttrainError, capsys, tmp_path
):
    def failing(settings, run):
        raise error

    kept = STAGE_TYPES["sft"]
    STAGE_TYPES["sft"] = StageType(SftSettings, ("model",), lambda: failing)
    try:
        arguments = ["sft", "--model.name_or_path", "owner/model", "--runs_dir", str(tmp_path), "--display", "none"]
        code, text = fails(capsys, *arguments)
        assert (code, text) == (error.exit_code, f"error: {error}\n")
        assert call(*arguments, "--debug") == error.exit_code
        assert "Traceback" in capsys.readouterr().err
    finally:
        STAGE_TYPES["sft"] = kept


def test_any_other_error_is_one_line_and_says_where_its_traceback_is(capsys, tmp_path):
    def failing(settings, run):
        raise ValueError("two\nlines")

    kept = STAGE_TYPES["sft"]
    STAGE_TYPES["sft"] = StageType(SftSettings, ("model",), lambda: failing)
    try:
        flags = ["--model.name_or_path", "owner/model", "--runs_dir", str(tmp_path), "--display", "none"]
        code, text = fails(capsys, "sft", *flags)
    finally:
        STAGE_TYPES["sft"] = kept
    events = tmp_path / "sft" / "sft" / "events.jsonl"
    assert (code, text) == (1, f"error: ValueError: two lines\n  traceback: {events}\n")
    assert "Traceback" in json.loads(events.read_text().splitlines()[-1])["traceback"]


def test_a_reader_that_has_gone_ends_the_command_quietly():
    code = "from posttrain.cli import main; main(['sft', '--help'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_stage_verb_runs_in_its_directory_with_file_and_flags(capsys, tmp_path):
    def recording(settings, run):
        run.finish({})

    kept = STAGE_TYPES["sft"]
    STAGE_TYPES["sft"] = StageType(SftSettings, ("model",), lambda: recording)
    (tmp_path / "c.toml").write_text("learning_rate = 1e-3\nmodel.name_or_path = 'owner/model'\n[data]\nrows = 2\n")
    try:
        flags = ["--config", str(tmp_path / "c.toml"), "--runs-dir", str(tmp_path), "--name", "try", "--data.rows", "3"]
        assert call("sft", *flags, "--display", "none") == 0
    finally:
        STAGE_TYPES["sft"] = kept
    assert capsys.readouterr().out == f"{tmp_path / 'try'}\n"
    settings = json.loads((tmp_path / "try" / "sft" / "settings.json").read_text())
    assert (settings["learning_rate"], settings["data"]["rows"]) == (1e-3, 3)


def make_tokenizer(directory: Path) -> None:
    """Write a real word tokenizer, with a config that names its model type."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    words = {"<eos>": 0, "<unk>": 1, "two": 2, "and": 3, "three": 4, "five": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(directory)
    LlamaConfig(vocab_size=6).save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(b"")  # a dry run never reads the weights


def test_a_dry_run_shows_origins_and_one_masked_example_and_starts_nothing(capsys, tmp_path):
    make_tokenizer(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "two and three ", "completion": "five", "answer": "5"}\n')
    (tmp_path / "r.toml").write_text(
        f'[model]\nname_or_path = "{tmp_path}/model"\n[data]\nsource = "{tmp_path}/rows.jsonl"\n'
        '[stage.sft]\ntype = "sft"\nlearning_rate = 1e-3\n[stage.grpo]\ntype = "grpo"\ninit_from = "sft"\n'
    )
    flags = ["--runs-dir", str(tmp_path / "runs"), "--stage.grpo.kl_coef", "0.1", "--dry-run"]
    assert call("run", str(tmp_path / "r.toml"), *flags) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"learning_rate 0.001 {tmp_path}/r.toml:7" in lines
    assert "kl_coef 0.1 --stage.grpo.kl_coef" in lines
    assert "num_generations 8 default" in lines
    assert f'model.name_or_path "{tmp_path}/runs/r/sft/artifact" artifact of sft' in lines
    assert any(line.startswith("trained") and "five" in line and "<eos>" in line for line in lines)
    assert any(line.startswith("prompt") and "three" in line and "five" not in line for line in lines)
    assert "| two and three" in lines
    assert "column answer: '5'" in lines
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(capsys, tmp_path):
    make_tokenizer(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "two"}\n')
    flags = ["--model.name_or_path", f"{tmp_path}/model", "--data.source", f"{tmp_path}/rows.jsonl", "--dry-run"]
    code, text = fails(capsys, "grpo", *flags, "--rewards", "{r1_zer = 1.0}")
    assert code == 2
    assert "unknown reward r1_zer" in text


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("model")
    make_tokenizer(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=6, eos_token_id=0, **sizes)).save_pretrained(directory)
    return str(directory)


def test_generate_prints_completions_and_the_same_ones_again(capsys, tiny_model):
    flags = [
        "--model",
        tiny_model,
        "--prompt",
        "two and",
        "--max_completion_length",
        "4",
        "--num-samples",
        "3",
        "--json",
    ]
    assert call("generate", *flags) == 0
    first = capsys.readouterr().out
    samples = [json.loads(line) for line in first.splitlines()]
    assert len(samples) == 3
    assert all(set(sample) == {"prompt", "completion", "stop_reason", "tokens"} for sample in samples)
    assert all(1 <= sample["tokens"] <= 4 for sample in samples)
    assert call("generate", *flags) == 0
    assert capsys.readouterr().out == first


def test_generate_reads_standard_input(capsys, tiny_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("two and\n"))
    flags = ["--temperature", "0", "--max-completion-length", "2", "--json"]
    assert call("generate", "--model", tiny_model, *flags) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "two and"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, text = fails(capsys, "generate", "--model", tiny_model, *flags)
    assert code == 3
    assert "the prompt is empty" in text


def test_doctor_prints_lines_or_json(capsys):
    assert call("doctor") == 0
    assert "usable cores" in capsys.readouterr().out
    assert call("doctor", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"]
    assert facts["compiled kernels"].startswith("yes" if facts["compiler"] else "no")
    assert facts["usable cores"] == len(os.sched_getaffinity(0))


def test_the_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == "0.1.0"
