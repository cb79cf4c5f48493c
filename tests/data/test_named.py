"""The named sources on rows of their published schemas, and on whole local copies where there are some."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import render_training_tree
from posttrain.data.files import Fault
from posttrain.data.named import SOURCES
from posttrain.data.prompts import PROMPT_STYLES
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows, scan_rows
from posttrain.errors import DataError
from posttrain.settings import DataSettings

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no local copies of public data beside the repository")

GSM8K = {
    "question": "Tom has 5 boxes of 12 pens and gives 8 pens away. How many pens has he left? ",
    "answer": "Tom has 5*12 = <<5*12=60>>60 pens.\nHe has 60-8 = $<<60-8=1052>>1,052 left.\n#### 1,052",
}
MATH = {
    "problem": "What is the value of $1+\\frac{1}{2}$?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "We add: $1+\\frac12=\\boxed{\\frac{3}{2}}$.",
}
MATH500 = {
    "problem": "How many divisors does 4 have?",
    "solution": "They are 1, 2 and 4, so there are $\\boxed{3}$.",
    "answer": "3",
    "subject": "Number Theory",
    "level": 3,
    "unique_id": "test/number_theory/1.json",
}
NUMINA = {
    "source": "cn_k12",
    "problem": "Solve $x-1=0$.",
    "solution": "Adding 1, $x=\\boxed{1}$.",
    "messages": [
        {"content": "Solve $x-1=0$.", "role": "user"},
        {"content": "Adding 1, $x=\\boxed{1}$.", "role": "assistant"},
    ],
}


def load(name: str, rows: list[dict[str, Any]], folder: Path, **settings: Any) -> list[Row]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(DataSettings(source=name, path=str(path), **settings), seed=0)


def test_gsm8k(tmp_path: Path) -> None:
    (row,) = load("gsm8k", [GSM8K], tmp_path)
    assert row.kind == "prompt_completion"
    assert row.prompt == PROMPT_STYLES["r1_zero"](GSM8K["question"].strip())
    assert row.completion == " Tom has 5*12 = 60 pens.\nHe has 60-8 = $1,052 left. </think> <answer>1,052</answer>"
    assert dict(row.columns) == {
        "question": GSM8K["question"].strip(),
        "answer": "1,052",
        "solution": GSM8K["answer"],
    }


def test_the_gold_of_gsm8k_follows_the_last_mark(tmp_path: Path) -> None:
    (row,) = load("gsm8k", [{**GSM8K, "answer": "#### Steps\n3+4=7\n#### 7"}], tmp_path)
    assert row.columns["answer"] == "7"


def test_math(tmp_path: Path) -> None:
    (row,) = load("math", [MATH], tmp_path, prompt_style="boxed")
    assert isinstance(row.prompt, tuple)
    assert row.prompt[0]["content"].startswith(MATH["problem"])
    assert row.completion == ({"role": "assistant", "content": MATH["solution"]},)
    assert row.columns["answer"] == "\\frac{3}{2}"
    assert (row.columns["level"], row.columns["type"]) == ("Level 1", "Algebra")


def test_math500_with_and_without_solutions(tmp_path: Path) -> None:
    bare = {"problem": "How many?", "answer": "9"}
    full, short = load("math500", [MATH500, bare], tmp_path)
    assert (full.kind, full.columns["answer"], full.columns["subject"]) == ("prompt_completion", "3", "Number Theory")
    assert full.completion == f" {MATH500['solution']} </think> <answer>3</answer>"
    assert (short.kind, short.columns["answer"], short.completion) == ("prompt", "9", None)
    assert load("math", [bare], tmp_path)[0].id == short.id


def test_numina_leaves_proofs_out_and_refuses_nothing(tmp_path: Path) -> None:
    proof = {**NUMINA, "problem": "Prove it.", "solution": "Clear."}
    (row,) = load("numina_math_cot", [NUMINA, proof], tmp_path, prompt_style="question")
    assert (row.prompt, row.completion) == (NUMINA["problem"], f"\n{NUMINA['solution']}")
    assert dict(row.columns) == {
        "source": "cn_k12",
        "question": NUMINA["problem"],
        "answer": "1",
        "solution": NUMINA["solution"],
    }


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("gsm8k", {**GSM8K, "answer": "It is 8."}, "no gold answer"),
        ("gsm8k", {**GSM8K, "answer": "It is 8.\n#### "}, "no gold answer"),
        ("gsm8k", {**GSM8K, "answer": 8}, "wrong type"),
        ("gsm8k", {**GSM8K, "question": " "}, "empty prompt"),
        ("gsm8k", {**GSM8K, "question": None}, "missing column"),
        ("math", {**MATH, "solution": "We add."}, "no gold answer"),
        ("math", {**MATH, "solution": None}, "no gold answer"),
        ("math", {**MATH, "problem": 7}, "wrong type"),
        ("math500", {**MATH500, "answer": True}, "wrong type"),
        ("nano", {"question": "1+1?", "answer": " "}, "no gold answer"),
    ],
)
def test_rows_without_what_a_source_needs_are_named(name: str, row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"1 {fault}: .*rows\.jsonl:1"):
        load(name, [row], tmp_path)


def test_wrong_columns_of_a_named_source(tmp_path: Path) -> None:
    renamed = {"prompt": GSM8K["question"], "answer": GSM8K["answer"]}
    with pytest.raises(DataError, match=r'gsm8k \(.*\) has no column "question"\. Found: prompt, answer') as caught:
        load("gsm8k", [renamed], tmp_path)
    assert caught.value.fix == "--data.columns.question prompt"
    assert load("gsm8k", [renamed], tmp_path, columns={"question": "prompt"})[0].columns["answer"] == "1,052"


def test_every_style_fits_every_source(tmp_path: Path) -> None:
    rows = {"gsm8k": GSM8K, "math": MATH, "math500": MATH500, "numina_math_cot": NUMINA}
    for name, record in rows.items():
        for style in PROMPT_STYLES:
            (row,) = load(name, [record], tmp_path, prompt_style=style)
            assert row.kind == "prompt_completion"
            assert str(row.columns["answer"]) in str(row.completion)


def test_nano_rows_are_derived_from_the_seed(chatml: Any) -> None:
    settings = DataSettings(source="nano", rows=20)
    rows = load_rows(settings, seed=3)
    assert 0 < len(rows) <= 20
    assert rows == load_rows(settings, seed=3)
    assert rows != load_rows(settings, seed=4)
    for row in rows:
        assert row.prompt == f"User: {row.columns['question']}\nAssistant: <think>"
        assert str(row.completion).endswith(f"</think> <answer>{row.columns['answer']}</answer>")
        assert render_training_tree(row, chatml).branches[0].mask


OWN = ("instructions", "alignment", "over_refusal")  # come with the package


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("nano") and name not in OWN])
def test_hub_sources_say_in_one_line_that_they_are_out_of_reach(name: str, tmp_path: Path) -> None:
    script = (
        "from posttrain.data.sources import load_rows\nfrom posttrain.settings import DataSettings\n"
        "from posttrain.errors import DataError\n"
        f"try: load_rows(DataSettings(source={name!r}, split={SOURCES[name].splits[0]!r}), seed=0)\n"
        "except DataError as error: print(error)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True, check=True).stdout
    first, fix = out.strip().splitlines()
    assert "cannot be read from the Hub: " in first
    assert fix.startswith("  fix: --data.path FILE")


def test_nothing_heavy_is_imported_to_read_lines(tmp_path: Path) -> None:
    script = (
        "import sys, posttrain.data.sources, posttrain.data.chat, posttrain.data.loader\n"
        "heavy = 'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'datasketch', 'py3langid', 'scipy'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@needs_shared
def test_every_gold_of_gsm8k_is_read() -> None:
    import re

    rows = [
        row
        for split in ("train", "test")
        for row in load_rows(DataSettings(source="gsm8k", path=str(SHARED / "gsm8k"), split=split), seed=0)
    ]
    assert len(rows) == 8792
    assert len({row.id for row in rows}) == 8792
    assert all(re.fullmatch(r"-?[\d,]*\.?\d+", row.columns["answer"]) for row in rows)
    assert not any("<<" in str(row.completion) or "####" in str(row.completion) for row in rows)


@needs_shared
def test_every_gold_of_math500_is_read() -> None:
    scan = scan_rows(DataSettings(source="math500", path=str(SHARED / "math500"), split="test"), seed=0)
    assert not scan.tally.counts
    assert len(scan.rows) == 500
    assert all(row.kind == "prompt" and row.columns["answer"] for row in scan.rows)


PAIR = {"question": "1+1?", "answer": "2", "solution": "1+1=2", "rejected_answer": 3, "rejected_solution": "1+1=3"}


def test_pairs_of_the_embedded_task(tmp_path: Path) -> None:
    (row,) = load("nano_preferences", [PAIR], tmp_path)
    assert row.kind == "preference"
    assert isinstance(row.rejected, str)
    assert "1+1=3" in row.rejected


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rejected_answer": None}, "no gold answer"),
        ({"rejected_answer": " "}, "no gold answer"),
        ({"rejected_answer": [3]}, "wrong type"),
        ({"rejected_solution": " "}, "empty completion"),
        ({"rejected_solution": None}, "empty completion"),
        ({"solution": ""}, "empty completion"),
    ],
)
def test_pairs_that_lack_a_part_are_malformed(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fault):
        load("nano_preferences", [PAIR, {**PAIR, "question": "2-1?", **change}], tmp_path)


def test_equal_pairs_of_the_embedded_task_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    same = {**PAIR, "question": "2-1?", "rejected_answer": 2, "rejected_solution": "1+1=2 "}
    path.write_text("".join(json.dumps(row) + "\n" for row in (PAIR, same)))
    scan = scan_rows(DataSettings(source="nano_preferences", path=str(path)), seed=0)
    assert len(scan.rows) == 1
    assert scan.tally.counts == {Fault.SAME: 1}
