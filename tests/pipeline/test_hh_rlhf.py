"""The real HH-RLHF rows, as published: every one read or named with its fault, its prompt found, and trained on."""

import gzip
import json
import math
from collections.abc import Callable
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from posttrain.data.rows import Row
from posttrain.data.sources import load_rows
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings
from tests.conftest import call

FILE = Path(__file__).parents[2].parent / "shared" / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz"
REPLY = "\n\nAssistant:"
EMPTY_REPLIES = [87, 517, 926, 1104]
TEXTS, CONVERSATIONS = {"source": str(FILE)}, {"source": "hh_rlhf", "path": str(FILE)}

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="the real HH-RLHF rows are not beside the repository")


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, str]]:
    """Return the rows by their places."""
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        return {f"{FILE}:{number}": json.loads(line) for number, line in enumerate(lines, start=1)}


@pytest.fixture(scope="module")
def model(save_model: Callable[..., str], nano_tokenizer: PreTrainedTokenizerFast) -> str:
    return save_model("llama", nano_tokenizer, max_position_embeddings=2048)


def usable_rows(data: dict[str, str]) -> list[Row]:
    return load_rows(DataSettings(**data, max_bad_rows=len(EMPTY_REPLIES)), seed=0, kinds=("preference",))


def split(record: dict[str, str]) -> tuple[str, str, str]:
    """Return what both transcripts share up to the last turn of the assistant that begins in both, and the rests."""
    shared = commonprefix([record["chosen"], record["rejected"]])  # noqa: RUF071, the characters are meant
    prompt = shared[: shared.rindex(REPLY) + len(REPLY)]
    return prompt, record["chosen"].removeprefix(prompt), record["rejected"].removeprefix(prompt)


def words(transcript: str) -> list[str]:
    return transcript.replace("\n\nHuman:", " ").replace(REPLY, " ").split()


def test_a_plain_look_at_the_rows_finds_no_fault_but_empty_replies(records: dict[str, dict[str, str]]) -> None:
    assert len(records) == 2312
    assert all(text.startswith("\n\nHuman: ") for record in records.values() for text in record.values())
    assert len({tuple(record.values()) for record in records.values()}) == len(records)
    assert not any(words(record["chosen"]) == words(record["rejected"]) for record in records.values())
    empty = [place for place, record in records.items() if not all(part.strip() for part in split(record))]
    assert empty == [f"{FILE}:{number}" for number in EMPTY_REPLIES]
    assert all(not records[place]["chosen"].rpartition(REPLY)[2].strip() for place in empty)


@pytest.mark.parametrize("stage", ["rm", "dpo"])
@pytest.mark.parametrize("source", [[str(FILE)], ["hh_rlhf", "--path", str(FILE)]], ids=["texts", "conversations"])
def test_data_check_reads_every_row_or_names_it(
    source: list[str], stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("data", "check", *source, "--stage", stage, "--json") == 3
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["usable"], report["malformed"], report["kinds"]) == (2308, 4, {"preference": 2308})
    assert list(report["faults"]) == ["empty completion"]
    fault = report["faults"]["empty completion"]
    assert (fault["rows"], fault["left_out"]) == (4, False)
    assert [place.partition(" (chosen")[:2] for place in fault["first"]] == [
        (f"{FILE}:{number}", " (chosen") for number in EMPTY_REPLIES
    ]
    assert "2308 usable rows, 4 malformed, 0 allowed" in captured.err


def test_texts_are_split_at_the_last_reply_that_begins_in_both(records: dict[str, dict[str, str]]) -> None:
    rows = usable_rows(TEXTS)
    assert len(rows) == 2308
    assert [(row.prompt, row.chosen, row.rejected) for row in rows] == [split(records[row.origin]) for row in rows]


def test_conversations_are_split_there_too_and_lose_no_word(records: dict[str, dict[str, str]]) -> None:
    rows = usable_rows(CONVERSATIONS)
    assert len(rows) == 2308
    for row in rows:
        sides: tuple[Any, ...] = (row.prompt, row.chosen, row.rejected)
        found = [" ".join(turn["content"] for turn in turns).split() for turns in sides]
        assert found == [words(part) for part in split(records[row.origin])], row.origin
        assert row.prompt[-1]["role"] == "user"  # type: ignore[index]
        assert all(side[0]["role"] == side[-1]["role"] == "assistant" for side in sides[1:])


@pytest.mark.parametrize("data", [TEXTS, CONVERSATIONS], ids=["texts", "conversations"])
@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_a_small_model_is_trained_on_them(
    model: str, stage: str, data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [part for name, value in data.items() for part in (f"--data.{name}", value)]
    flags += ["--data.rows", "90", "--model.name_or_path", model, "--model.dtype", "float32", "--max_steps", "2"]
    flags += ["--data.max_length", "512", "--rows_per_step", "4", "--display", "none"]
    assert call(stage, *flags, "--runs_dir", str(tmp_path / "refused")) == 3
    assert f"{FILE}:87 (chosen" in capsys.readouterr().err
    assert call(stage, *flags, "--runs_dir", str(tmp_path), "--data.max_bad_rows", "1") == 0
    run = tmp_path / stage / stage
    (notice,) = (event["text"] for event in read_rows(run / "events.jsonl") if "rows left out" in event.get("text", ""))
    assert f"1 empty completion: {FILE}:87 (chosen" in notice
    summary = json.loads((run / "result.json").read_text())["summary"]
    assert summary["rows"] > 24
    assert summary["rows"] + summary.get("held_out_rows", 0) + summary["dropped_rows"] == 90
    losses = [row["loss"] for row in read_rows(run / "metrics.jsonl")]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    if stage == "dpo":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
