"""Completions of a batch in progress outlive the process that made them."""

from pathlib import Path

from posttrain.evals.journal import Journal, forget
from posttrain.records import Completion, Prompt, StopReason

PROMPTS = [Prompt(id, (1,), id, {}) for id in ("a", "b")]
ENDED = Completion((5, 2), (-0.25, -1e-7), StopReason.EOS, "\u2028 x")


def test_what_ended_is_there_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "file", "model", PROMPTS)
    assert journal == {}
    journal[1, 0] = ENDED
    assert Journal(tmp_path / "file", "model", PROMPTS) == {(1, 0): ENDED}
    assert Journal(tmp_path / "file", "model", PROMPTS[::-1]) == {(0, 0): ENDED}


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    Journal(tmp_path / "file", "model", PROMPTS)[0, 1] = ENDED
    with (tmp_path / "file").open("a") as file:
        file.write('{"model": "mod')
    journal = Journal(tmp_path / "file", "model", PROMPTS)
    assert journal == {(0, 1): ENDED}
    journal[1, 1] = ENDED
    assert len(Journal(tmp_path / "file", "model", PROMPTS)) == 2


def test_another_batch_or_model_begins_anew(tmp_path: Path) -> None:
    for model, prompts in (("other", PROMPTS), ("model", [Prompt("c", (1,), "c", {})])):
        Journal(tmp_path / "file", "model", PROMPTS)[0, 0] = ENDED
        assert Journal(tmp_path / "file", model, prompts) == {}
        assert not (tmp_path / "file").exists()
    forget(tmp_path / "file")
