"""What a preference stage compares with: KTO's mismatched completions, the key of kept log-probs, held-out prompts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.pairs import render_preference
from posttrain.data.sources import load_rows
from posttrain.models.lm import load_model, save_model
from posttrain.models.scores import add_score_head
from posttrain.records import Branch, TokenTree
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings, DpoSettings, RmSettings
from posttrain.stages.dpo import dpo, mismatched_trees
from posttrain.stages.optimize import make_optimizers
from posttrain.stages.reference import as_reference, cached_sequence_logprobs, evaluate_sequences
from posttrain.stages.rm import rm
from tests.stages.conftest import RunStage, model_settings, result, rows_of


def tree(prompt: tuple[int, ...], *completions: tuple[int, ...]) -> TokenTree:
    return TokenTree(prompt, tuple(Branch(ids, (1,) * len(ids)) for ids in completions))


# --- KTO's reference point -------------------------------------------------------------------------------------


def test_mismatched_completions_are_whole_and_all_of_the_next_prompt() -> None:
    one, two, three = tree((1,), (2,)), tree((3, 4), (5, 6, 7), (8, 9, 10, 11)), tree((12,), (13, 14))
    assert mismatched_trees([one, two, three], 100) == [
        tree((1,), (5, 6, 7), (8, 9, 10, 11)),
        tree((3, 4), (13, 14)),
        tree((12,), (2,)),
    ]
    assert mismatched_trees([one, two, three], 4)[0] == tree((1,), (5, 6, 7), (8, 9, 10))


def test_mismatched_completions_are_never_of_the_same_prompt() -> None:
    good, bad, other = tree((1,), (2,)), tree((1,), (3,)), tree((4,), (5,))
    assert mismatched_trees([good, bad, other], 9) == [tree((1,), (5,)), tree((1,), (5,)), tree((4,), (2,))]
    assert mismatched_trees([good], 9) == []
    assert mismatched_trees([good, bad], 9) == []


def test_a_last_row_alone_does_not_estimate_the_kl(model_directory: str, run_stage: RunStage, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}:", "completion": f" {n} again", "label": True} for n in range(5)]
    settings = DpoSettings(
        model=model_settings(model_directory),
        data=rows_of(tmp_path / "judged.jsonl", rows),
        losses={"kto": 1.0},
        rows_per_step=2,
        learning_rate=1e-2,
    )
    rows = read_rows(run_stage(dpo, settings, "kto").path / "metrics.jsonl")
    assert [row["kl"] > 0 for row in rows] == [False, True, False]
    assert rows[2]["rewards/chosen"] > 0  # which is what the row itself would have said


# --- the key of kept log-probs ---------------------------------------------------------------------------------


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("lora_r", [0, 4])
def test_kept_logprobs_know_the_configuration(model_directory: str, tmp_path: Path, lora_r: int) -> None:
    """Weights alone do not say what norms divide by, or the strength of an adapter."""
    directory, cache = tmp_path / "model", tmp_path / "cache"
    if lora_r:
        loaded = load_model(model_settings(model_directory, lora_r=lora_r), seed=0)
        with torch.no_grad():
            for name, parameter in loaded.model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
        save_model(loaded, directory)
    else:
        shutil.copytree(model_directory, directory)
    rows = load_rows(DataSettings(source="nano_preferences", rows=3), seed=0)
    found = []
    for value in (8, 1000, 8):
        if lora_r:
            edit(directory / "adapter_config.json", lora_alpha=value)
        else:
            edit(directory / "config.json", rms_norm_eps=1 / value)
        loaded = load_model(model_settings(str(directory)), seed=0)
        trees = {row.id: render_preference(row, loaded.tokenizer) for row in rows}
        with as_reference(loaded):
            expected = evaluate_sequences(loaded, list(trees.values()), 4096)
        kept = cached_sequence_logprobs(loaded, trees, cache, 4096, on_progress=lambda: None)
        torch.testing.assert_close(torch.cat(list(kept.values())), expected)
        found.append(expected)
    assert not torch.allclose(found[0], found[1], rtol=1e-4)
    assert len(list(cache.iterdir())) == 2


# --- the reward model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora_r", [0, 4])
def test_muon_leaves_the_score_head_to_adamw(model_directory: str, lora_r: int) -> None:
    loaded = load_model(model_settings(model_directory, lora_r=lora_r), seed=0)
    add_score_head(loaded, seed=0)
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    adamw, muon = make_optimizers(loaded, trained, RmSettings(optimizer="muon"))
    (head,) = (p for name, p in trained.items() if "score" in name)
    assert any(p is head for group in adamw.param_groups for p in group["params"])
    sizes = [p.shape for group in muon.param_groups for p in group["params"]]
    assert sizes
    assert (1, 32) not in sizes


def test_prompts_of_equal_tokens_are_held_out_together(
    model_directory: str, run_stage: RunStage, tmp_path: Path
) -> None:
    """A turn may carry what the template does not show."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {n % 2}.", "turn_id": n}],
            "chosen": [{"role": "assistant", "content": f"{n}"}],
            "rejected": [{"role": "assistant", "content": f"not {n}"}],
        }
        for n in range(8)
    ]
    data = rows_of(tmp_path / "pairs.jsonl", rows)
    settings = RmSettings(model=model_settings(model_directory), data=data, max_steps=1, rows_per_step=2)
    summary = result(run_stage(rm, settings, "rm"))
    assert (summary["rows"], summary["held_out_rows"]) == (4, 4)
