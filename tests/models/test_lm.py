"""Loading and saving: precision, end ids, dropout, the fallback to rows, and every broken directory refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain.data.trees import build_batch
from posttrain.errors import ModelError
from posttrain.models import devices
from posttrain.models.devices import resolve_device, resolve_dtype
from posttrain.models.files import is_path
from posttrain.models.lm import LoadedModel, export_merged, load_model, save_model
from posttrain.models.logprobs import completion_logprobs
from posttrain.records import Branch, TokenTree
from posttrain.settings import ModelSettings

TREES = [TokenTree((5, 6, 7, 8), (Branch((9, 10, 11), (1, 1, 1)), Branch((12, 2), (1, 1))))]
Save = Callable[..., Path]


def load(path: Path | str, *, trainable: bool = True, **settings) -> LoadedModel:
    settings = {"dtype": "float32", "device": "cpu", **settings}
    return load_model(ModelSettings(name_or_path=str(path), **settings), seed=0, trainable=trainable)


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_full_fine_tuning_keeps_float32_weights_and_multiplies_in_dtype(saved: Save) -> None:
    path = saved()
    batch = build_batch(TREES)
    exact = completion_logprobs(load(path).model, batch).logprobs
    loaded = load(path, dtype="bfloat16")
    logprobs = completion_logprobs(loaded.model, batch).logprobs
    assert loaded.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert 0 < (logprobs - exact).abs().max() < 0.1
    logprobs.sum().backward()
    assert {parameter.grad.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_a_model_for_evaluation_is_held_in_dtype_and_frozen(saved: Save) -> None:
    loaded = load(saved(), trainable=False, dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_end_ids_are_those_of_generation_config_config_and_tokenizer(saved: Save, tmp_path: Path) -> None:
    path = saved()
    edit(path / "generation_config.json", eos_token_id=[7, 8])
    edit(path / "config.json", eos_token_id=9)
    loaded = load(path)
    assert loaded.eos_ids == {2, 7, 8, 9}
    assert loaded.pad_id == 0
    save_model(loaded, tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id == [2, 7, 8, 9]


def test_an_adapter_carries_the_end_ids_that_its_base_does_not_know(saved: Save, tmp_path: Path) -> None:
    path = saved()
    edit(path / "generation_config.json", eos_token_id=[7, 8], do_sample=True, temperature=0.6)
    loaded = load(path, lora_r=2)
    assert loaded.eos_ids == {2, 7, 8}
    save_model(loaded, tmp_path / "adapter")
    carried = GenerationConfig.from_pretrained(tmp_path / "adapter")
    assert (carried.eos_token_id, carried.temperature) == ([2, 7, 8], 0.6)
    assert GenerationConfig.from_pretrained(path).eos_token_id == [7, 8]  # what a user would stop at without it
    assert load(tmp_path / "adapter").eos_ids == load(tmp_path / "adapter", trainable=False).eos_ids == {2, 7, 8}


@pytest.mark.parametrize("lora_r", [0, 2])
def test_a_generation_config_that_contradicts_itself_does_not_stop_the_save(
    saved: Save, tmp_path: Path, lora_r: int
) -> None:
    path = saved()
    edit(path / "generation_config.json", do_sample=False, temperature=0.6, eos_token_id=7)
    loaded = load(path, lora_r=lora_r)
    with pytest.raises(ValueError, match="temperature"):
        loaded.model.generation_config.validate(strict=True)
    save_model(loaded, tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [2, 7]


def test_a_tokenizer_without_padding_pads_with_an_end_id(saved: Save) -> None:
    path = saved()
    edit(path / "tokenizer_config.json", pad_token=None)
    assert load(path).pad_id == 2


def test_dropout_is_off(saved: Save) -> None:
    loaded = load(saved("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5))
    loaded.model.train()
    once, again = (completion_logprobs(loaded.model, build_batch(TREES)).logprobs for _ in range(2))
    assert torch.equal(once, again)
    assert load(saved("llama", attention_dropout=0.5)).model.model.layers[0].self_attn.attention_dropout == 0.0


def test_gradient_checkpointing_gives_the_same_gradients(saved: Save) -> None:
    path = saved()
    found = []
    for checkpointing in (False, True):
        loaded = load(path, gradient_checkpointing=checkpointing, dtype="bfloat16")
        completion_logprobs(loaded.model, build_batch(TREES)).logprobs.sum().backward()
        found.append([parameter.grad for parameter in loaded.model.parameters()])
        assert loaded.model.is_gradient_checkpointing == checkpointing
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("family", ["bloom", "mamba", "gpt_oss"])
def test_architectures_without_trees_fall_back_to_rows_with_one_notice(saved: Save, caplog, family: str) -> None:
    with caplog.at_level(logging.WARNING, logger="posttrain"):
        loaded = load(saved(family))
    assert loaded.layout == "rows"
    assert sum("laid out as rows" in record.message for record in caplog.records) == 1
    logprobs = completion_logprobs(loaded.model, build_batch(TREES, layout=loaded.layout)).logprobs
    ids = torch.tensor([[5, 6, 7, 8, 12, 2]])
    expected = loaded.model(ids).logits[0, 3:-1].log_softmax(-1).gather(1, ids[0, 4:, None]).squeeze(1)
    torch.testing.assert_close(logprobs[1, :2], expected, rtol=1e-5, atol=1e-5)


def test_rows_can_be_asked_for(saved: Save) -> None:
    path = saved()
    rows, tree = load(path, layout="rows"), load(path)
    assert (rows.layout, tree.layout) == ("rows", "tree")
    by_rows = completion_logprobs(rows.model, build_batch(TREES, layout="rows")).logprobs
    torch.testing.assert_close(by_rows, completion_logprobs(tree.model, build_batch(TREES)).logprobs)


def test_logits_that_are_not_understood_are_refused(saved: Save) -> None:
    with pytest.raises(ModelError, match="computes its logits in a way that is not supported"):
        load(saved("falcon_h1", lm_head_multiplier=0.2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_saved_model_loads_in_transformers(saved: Save, tmp_path: Path, family: str) -> None:
    loaded = load(saved(family))
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.1)
    expected = completion_logprobs(loaded.model, build_batch(TREES)).logprobs[1, :2]
    for write in (save_model, export_merged):
        directory = tmp_path / write.__name__
        write(loaded, directory)
        assert not list(directory.glob("*.bin"))
        model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
        ids = torch.tensor([[5, 6, 7, 8, 12, 2]])
        got = model(ids).logits[0, 3:-1].log_softmax(-1).gather(1, ids[0, 4:, None]).squeeze(1)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert AutoTokenizer.from_pretrained(directory)("w0 w1")["input_ids"] == [4, 5]
        torch.testing.assert_close(
            completion_logprobs(load(directory).model, build_batch(TREES)).logprobs[1, :2], expected
        )


def test_an_export_has_the_dtype_and_leaves_the_model_alone(saved: Save, tmp_path: Path) -> None:
    loaded = load(saved(), dtype="bfloat16")
    export_merged(loaded, tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16
    assert loaded.model.dtype == loaded.model.config.dtype == torch.float32


def test_a_chat_template_replaces_the_tokenizers_and_is_saved(saved: Save, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text("{{ messages[0].content }}!")
    loaded = load(saved(), chat_template=str(tmp_path / "template.jinja"))
    save_model(loaded, tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False) == "w1!"
    with pytest.raises(ModelError, match=r"chat_template .* cannot be read"):
        load(tmp_path / "model", chat_template=str(tmp_path / "absent.jinja"))


def only_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def missing_shard(path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (path / "model.safetensors").rename(path / names[0])
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def truncated(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (only_pickle, "only as pickle"),
    "shard": (missing_shard, "missing: model-00002-of-00002.safetensors"),
    "truncated": (truncated, "cannot be loaded"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "has no weights"),
    "no config": (lambda path: (path / "config.json").unlink(), "neither config.json nor adapter_config.json"),
    "bad config": (lambda path: (path / "config.json").write_text("{"), "not readable as JSON"),
    "code": (lambda path: edit(path / "config.json", auto_map={"AutoModel": "x.Y"}), "has auto_map"),
    "kernel": (lambda path: edit(path / "config.json", _attn_implementation_internal="a/b"), "asks to run code"),
    "unknown type": (lambda path: edit(path / "config.json", model_type="nonesuch"), "cannot be loaded"),
    "more layers": (lambda path: edit(path / "config.json", num_hidden_layers=3), "weights are missing"),
    "other vocabulary": (lambda path: edit(path / "config.json", vocab_size=65), "cannot be loaded|another shape"),
    "no tokenizer": (lambda path: [file.unlink() for file in path.glob("tokenizer*")], "cannot be loaded"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_directory_is_refused(saved: Save, fault: str) -> None:
    path = saved()
    load(path)
    damage, message = BROKEN[fault]
    damage(path)
    with pytest.raises(ModelError, match=message) as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_tokenizer_larger_than_the_model_is_refused(saved: Save) -> None:
    with pytest.raises(ModelError, match="64 tokens and the model embeds 50"):
        load(saved(vocab_size=50))


def test_a_model_without_end_id_is_refused(saved: Save) -> None:
    path = saved(eos_token_id=None)
    edit(path / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="no end-of-sequence id"):
        load(path)


def test_a_missing_directory_names_its_neighbours_and_never_asks_the_hub(saved: Save, tmp_path: Path) -> None:
    saved(name="present")
    with pytest.raises(ModelError, match="absent does not exist; beside it: present"):
        load(tmp_path / "absent")


def test_a_hub_name_that_cannot_be_reached_gives_one_line_and_a_fix() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing cannot be loaded from the Hub") as raised:
        load("nobody/nothing")
    _, fix = str(raised.value).splitlines()
    assert "hf download nobody/nothing" in fix


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt2", False), ("Qwen/Qwen2.5-0.5B", False), ("./gpt2", True), ("~/m", True), ("/m", True), ("a/b/c", True)],
)
def test_what_is_a_path(name: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_path(name) is expected


def test_a_name_in_a_local_folder_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_path("runs/one")
    (tmp_path / "runs").mkdir()
    assert is_path("runs/one")


def test_devices_and_dtypes() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype("float32", cpu) == torch.float32
    assert resolve_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="cuda was asked for"):
            resolve_device("cuda")


@pytest.mark.parametrize("fast", [False, True])
def test_emulated_bfloat16_is_told_once(
    fast: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "multiplies_bfloat16_fast", lambda device: fast)
    devices._tell_emulated.cache_clear()
    for name in ("auto", "float32", "bfloat16", "bfloat16"):
        resolve_dtype(name, torch.device("cpu"))
    assert caplog.text.count('model.dtype = "auto" takes float32') == (0 if fast else 1)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("w9", {2}), ("<|im_end|>\n", {2, 64}), ("<|im_end|>\n</s>", {2, 64}), ("", {2})],
)
def test_the_id_that_the_template_ends_a_turn_with_ends_a_completion(
    saved: Save, tmp_path: Path, ending: str, expected: set[int]
) -> None:
    directory = saved(vocab_size=70)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}" + repr(ending).join(("{{ ", " }}")) + "{% endfor %}"
    )
    tokenizer.save_pretrained(directory)
    loaded = load(directory)
    assert loaded.eos_ids == expected
    save_model(loaded, tmp_path / "out")
    assert set(AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id) == expected


def test_lengths_are_held_to_the_context(saved: Save) -> None:
    loaded = load(saved())
    assert loaded.fit(100) == 100
    assert loaded.fit(2048) == 128


def test_large_logits_do_not_hide_prompt_trees(saved: Save) -> None:
    """A trained model's logits spread over tens of nats, where bfloat16 is coarse."""
    directory = saved(initializer_range=1.0, tie_word_embeddings=False)
    for trainable in (True, False):
        assert load(directory, dtype="bfloat16", trainable=trainable).layout == "tree"


def test_loading_tells_nothing_that_is_no_fault(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        load(saved())
    finally:
        logger.removeHandler(handler)
    assert told == []
