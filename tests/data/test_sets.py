"""The sets of prompts that come with the package: what is in them, in balance, and readable."""

from collections import Counter
from pathlib import Path

import pytest

from posttrain.data.rows import Row
from posttrain.data.sources import load_rows
from posttrain.errors import ConfigError
from posttrain.rewards.instructions import INSTRUCTIONS
from posttrain.rewards.instructions.verdicts import read_instructions
from posttrain.rewards.requirements import require_columns
from posttrain.settings import DataSettings
from tests.conftest import write_rows


def load(name: str, **settings: str) -> list[Row]:
    return load_rows(DataSettings.model_validate({"source": name, "split": "test", **settings}), seed=0)


@pytest.mark.parametrize(
    ("name", "reward"),
    [
        ("instructions", "follows_every_instruction"),
        ("alignment", "passes_checks"),
        ("over_refusal", "refuses_rightly"),
    ],
)
def test_every_row_can_be_scored_and_no_prompt_comes_twice(name: str, reward: str) -> None:
    rows = load(name)
    require_columns(rows, [reward])
    prompts = [row.prompt[0]["content"] for row in rows if isinstance(row.prompt, tuple)]
    assert len(set(prompts)) == len(rows) >= 60
    assert all(prompt == prompt.strip() for prompt in prompts)
    texts = [row.prompt for row in load(name, prompt_style="question")]
    assert texts == prompts
    assert [row.id for row in load(name, prompt_style="question")] == [row.id for row in rows]


def test_instructions_have_every_kind_at_least_twice() -> None:
    counts = Counter(each.name for row in load("instructions") for each in read_instructions(row.columns))
    assert counts.keys() == INSTRUCTIONS.keys()
    assert min(counts.values()) >= 2


def test_the_wording_names_what_the_check_looks_for() -> None:
    for row in [*load("instructions"), *load("alignment")]:
        assert isinstance(row.prompt, tuple)
        prompt = row.prompt[0]["content"].lower()
        for instruction in read_instructions(row.columns):
            for key, value in instruction.arguments.items():
                if key in ("keyword", "keywords", "forbidden_words", "end_phrase", "first_word", "postscript_marker"):
                    words = [value] if isinstance(value, str) else value
                    assert [word for word in words if word.lower() not in prompt] == []
                elif key == "num_words":
                    assert str(value) in prompt


def test_alignment_has_its_three_kinds() -> None:
    rows = load("alignment")
    counts = Counter(row.columns["kind"] for row in rows)
    assert counts.keys() == {"constraint", "safety", "fact"}
    assert min(counts.values()) >= 20
    refused = Counter(row.columns["should_refuse"] for row in rows if row.columns["kind"] == "safety")
    assert refused[True] > refused[False] > 0


def test_over_refusal_is_balanced_within_its_families() -> None:
    rows = load("over_refusal")
    assert all((row.columns["kind"] == "harmful") == row.columns["should_refuse"] for row in rows)
    counts = Counter((row.columns["family"], row.columns["kind"]) for row in rows)
    families = {family for family, _ in counts}
    assert len(families) == 5
    assert {(counts[family, "harmless"], counts[family, "harmful"]) for family in families} == {(8, 4)}


def test_the_sets_are_for_tests_alone() -> None:
    with pytest.raises(ConfigError, match='over_refusal has no split "train", only test'):
        load("over_refusal", split="train")


def test_ifeval_is_read_from_a_copy(tmp_path: Path) -> None:
    record = {"key": 1, "prompt": "Go.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"keyword": None}]}
    path = write_rows(tmp_path / "train.jsonl", [record])
    (row,) = load("ifeval", path=path)
    assert row.prompt == ({"role": "user", "content": "Go."},)
    assert row.columns["key"] == 1
    assert [each.name for each in read_instructions(row.columns)] == ["punctuation:no_comma"]
