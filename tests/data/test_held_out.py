"""The held-out split: what stays together, what it depends on, and where it is refused."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.data.held_out import conversation_key, split_to_read
from posttrain.data.named import SOURCES
from posttrain.data.rows import Kind, Row, build_row, kind_of
from posttrain.data.sources import load_rows, scan_rows
from posttrain.errors import ConfigError, DataError
from posttrain.settings import DataSettings, FilterSettings

PAIRS: tuple[Kind, ...] = ("preference",)
QUESTIONS = [{"prompt": f"How many are {n} and {n + 1}?", "completion": str(2 * n + 1)} for n in range(400)]


def write(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def load(source: str, split: str, held_out: float = 0.2, kinds: Sequence[Kind] = (), **settings: Any) -> list[Row]:
    return load_rows(DataSettings(source=source, split=split, held_out=held_out, **settings), seed=0, kinds=kinds)


def prompts(rows: Sequence[Row]) -> list[str]:
    return [str(row.prompt) for row in rows]


def key(record: dict[str, Any]) -> str:
    kind = kind_of(record, PAIRS)
    assert kind is not None
    return conversation_key(build_row(record, id="0", kind=kind, origin="a.jsonl:1"))


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    said = [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *said]


def test_the_splits_share_the_rows_out(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", QUESTIONS)
    train, test = load(source, "train"), load(source, "test")
    assert sorted(prompts([*train, *test])) == sorted(row["prompt"] for row in QUESTIONS)
    assert 0.14 < len(test) / len(QUESTIONS) < 0.26
    assert prompts(load(source, "validation")) == prompts(test)
    assert [row.origin for row in test] == sorted((row.origin for row in test), key=lambda o: int(o.rpartition(":")[2]))
    assert len(load(source, "test", held_out=0.0)) == len(QUESTIONS)


def test_a_larger_share_holds_the_smaller_one(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", QUESTIONS)
    small, large = set(prompts(load(source, "test", 0.1))), set(prompts(load(source, "test", 0.5)))
    assert small < large
    assert len(large) > 160


def test_neither_seed_nor_order_nor_other_rows_nor_columns_nor_style_matter(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", QUESTIONS)
    test = set(prompts(load(source, "test")))
    settings = DataSettings(source=source, split="test", held_out=0.2)
    assert set(prompts(load_rows(settings, seed=7))) == test
    turned = [{"q": row["prompt"], "note": n} for n, row in enumerate(reversed(QUESTIONS[:200]))]
    other = write(tmp_path / "b.jsonl", turned)
    few = {row["prompt"] for row in QUESTIONS[:200]}
    assert set(prompts(load(other, "test", columns={"prompt": "q"}))) == test & few
    styled = load(other, "test", columns={"prompt": "q"}, prompt_style="chat")
    assert {row.prompt[0]["content"] for row in styled if isinstance(row.prompt, tuple)} == test & few


def test_the_file_format_does_not_matter(tmp_path: Path) -> None:
    test = prompts(load(write(tmp_path / "a.jsonl", QUESTIONS), "test"))
    pq.write_table(pa.Table.from_pylist(QUESTIONS), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(QUESTIONS)
    (tmp_path / "a.json").write_text(json.dumps(QUESTIONS))
    for name in ("a.parquet", "a.csv", "a.json"):
        assert prompts(load(str(tmp_path / name), "test")) == test


def test_a_named_source_from_a_file_is_split_by_its_questions(tmp_path: Path) -> None:
    problems = [{"question": row["prompt"], "answer": f"#### {row['completion']}"} for row in QUESTIONS]
    path = write(tmp_path / "a.jsonl", problems)
    test = prompts(load(write(tmp_path / "b.jsonl", QUESTIONS), "test"))
    for style in ("r1_zero", "boxed"):
        rows = load("gsm8k", "test", path=path, prompt_style=style)
        assert [row.columns["question"] for row in rows] == test


def test_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    records = [{"prompt": f"Say {n % 40}.", "chosen": f"{n}", "rejected": f"not {n}"} for n in range(160)]
    source = write(tmp_path / "a.jsonl", records)
    train, test = (set(prompts(load(source, split, kinds=PAIRS))) for split in ("train", "test"))
    assert train.isdisjoint(test)
    assert len(train | test) == 40
    assert len(load(source, "train", kinds=PAIRS)) == 4 * len(train)


def test_turns_that_follow_one_another_stay_together(tmp_path: Path) -> None:
    """HH-RLHF has the same conversation at several lengths."""
    hh = []
    for n in range(60):
        said = f"\n\nHuman: Question {n}?\n\nAssistant:"
        hh.append({"chosen": f"{said} Yes.", "rejected": f"{said} No."})
        said += f" Well, {n}.\n\nHuman: And then?\n\nAssistant:"
        hh.append({"chosen": f"{said} Yes.", "rejected": f"{said} No."})
    path = write(tmp_path / "a.jsonl", hh)
    for source, options in ({"hh_rlhf": {"path": path}, path: {}}).items():
        first = {}
        for split in ("train", "test"):
            rows = load(source, split, kinds=PAIRS, **options)
            first[split] = [int(row.origin.rpartition(":")[2]) for row in rows]
        assert {(line - 1) // 2 for line in first["train"]}.isdisjoint((line - 1) // 2 for line in first["test"])
        assert len(first["train"]) + len(first["test"]) == 120
        assert first["test"] == [
            int(row.origin.rpartition(":")[2]) for row in load("hh_rlhf", "test", kinds=PAIRS, path=path)
        ]


def test_what_begins_a_conversation() -> None:
    base = key({"prompt": turns("Hello?")})
    assert key({"prompt": "hello? "}) == base
    assert key({"messages": turns("Hello?", "Hi.", "More.", "Well.")}) == base
    assert (
        key({"prompt": turns("Hello?", "Hi.", "More."), "completion": [{"role": "assistant", "content": "a"}]}) == base
    )
    assert key({"text": "\n\nHuman: Hello?\n\nAssistant: Hi."}) == base
    assert key({"prompt": "\n\nHuman: Hello?\n\nAssistant: Hi.\n\nHuman: More.\n\nAssistant:"}) == base
    different = [
        {"prompt": turns("Goodbye.")},
        {"prompt": turns("Hello?", system="Be brief.")},
        {"prompt": turns("Hello?", system="Be kind.")},
        {"prompt": [{"role": "system", "content": "Hello? Anyone?"}]},
        {"text": "Human: Hello?"},
    ]
    assert len({base, *map(key, different)}) == 1 + len(different)


def test_the_first_rows_are_those_of_the_side(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", QUESTIONS)
    assert prompts(load(source, "test", rows=5)) == prompts(load(source, "test"))[:5]


def test_near_duplicates_do_not_stand_on_both_sides(tmp_path: Path) -> None:
    tale = "A miller had three sons, and the youngest of them was left with a cat that asked him for a pair of boots"
    records = [{"prompt": f"{tale} and {n} bags.", "completion": "It made him rich in the end."} for n in range(40)]
    source = write(tmp_path / "a.jsonl", records)
    settings = DataSettings(source=source, held_out=0.5, filters=FilterSettings(near_duplicates=0.5))
    found = [scan_rows(settings.model_copy(update={"split": split}), seed=0).rows for split in ("train", "test")]
    assert sum(map(len, found)) == 1
    assert min(len(load(source, split, 0.5)) for split in ("train", "test")) > 10


def test_a_side_without_rows_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", QUESTIONS[:1])
    side = "train" if load(source, "test", 0.999) else "test"
    with pytest.raises(DataError, match=rf"a\.jsonl \({side}, 0\.999 held out\) has no usable row"):
        load(source, side, 0.999)


# --- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message", "fix"),
    [
        ({"source": "gsm8k", "held_out": 0.1}, "gsm8k has train, test", "--data.held_out 0"),
        ({"source": "nano", "held_out": 0.1}, "nano has train, validation, test", "--data.held_out 0"),
        ({"source": "orca_dpo", "split": "test"}, 'orca_dpo has no split "test", only train', "--data.held_out 0.1"),
        ({"source": "oasst", "split": "test"}, "only train, validation", "--data.split validation"),
        ({"source": "math500"}, 'math500 has no split "train", only test', "--data.split test"),
        ({"source": "a.jsonl", "split": "dev", "held_out": 0.1}, 'not "dev"', "--data.split test"),
    ],
)
def test_splits_that_there_are_not_are_refused(settings: dict[str, Any], message: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_to_read(DataSettings(**settings))
    assert message in str(caught.value)
    assert caught.value.fix == fix


def test_sources_with_one_split_are_read_from_it() -> None:
    for name in ("orca_dpo", "alpaca", "ultrafeedback"):
        assert SOURCES[name].splits == ("train",)
        for split in ("train", "validation", "test"):
            assert split_to_read(DataSettings(source=name, split=split, held_out=0.1)) == "train"
    assert split_to_read(DataSettings(source="math500", held_out=0.1)) == "test"
    assert split_to_read(DataSettings(source="gsm8k", split="test")) == "test"
    assert split_to_read(DataSettings(source="gsm8k", split="train[:10%]")) == "train[:10%]"


def test_a_directory_is_split_where_it_has_one_split(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00001.jsonl", QUESTIONS)
    source = str(tmp_path)
    assert prompts(load(source, "test")) == prompts(load(f"{source}/train-00000-of-00001.jsonl", "test"))
    write(tmp_path / "test.jsonl", QUESTIONS[:5])
    with pytest.raises(ConfigError, match=r"has train, test"):
        load(source, "test")
    assert len(load(source, "test", held_out=0.0)) == 5
