"""Each filter by itself, with rows that must stay beside those that must go, and all of them while rows are read."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.files import LEFT_OUT, Fault, Malformed
from posttrain.data.filters import make_filters, shingles
from posttrain.data.rows import Kind, Row, build_row, kind_of
from posttrain.data.sources import load_rows, scan_rows
from posttrain.errors import ConfigError
from posttrain.settings import DataSettings, FilterSettings

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no local copies of public data beside the repository")
KINDS: tuple[Kind, ...] = ("preference", "unpaired")
REFUSAL = "I'm sorry, but I can't help with that."
TALE = (
    "Once upon a time a miller had three sons. The eldest took the mill, the second took the donkey, and the youngest "
    "was left with nothing but a cat, which asked him for a pair of boots and a bag and promised to make him rich."
)


def rows_of(*records: dict[str, Any]) -> list[Row]:
    rows = []
    for number, record in enumerate(records, start=1):
        kind = kind_of(record, KINDS)
        assert kind is not None
        rows.append(build_row(record, id=str(number), kind=kind, origin=f"a.jsonl:{number}"))
    return rows


def kept(rows: Sequence[Row], **settings: Any) -> tuple[list[str], list[tuple[str, Fault, str]]]:
    """Return the line numbers of the rows that stay, and number, fault and detail of the others."""
    filters = make_filters(FilterSettings(**settings))
    stay, gone = [], []
    for row in rows:
        try:
            for check in filters:
                check(row)
        except Malformed as malformed:
            gone.append((row.id, malformed.fault, malformed.detail))
        else:
            stay.append(row.id)
    return stay, gone


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(*contents: str) -> list[dict[str, str]]:
    return [message(("user", "assistant")[at % 2], content) for at, content in enumerate(contents)]


def test_without_settings_there_is_no_filter() -> None:
    assert make_filters(FilterSettings()) == []
    assert make_filters(FilterSettings(min_language_probability=0.5)) == []


# --- length ----------------------------------------------------------------------------------------------------


def test_lengths_are_in_characters_without_the_white_space_around() -> None:
    rows = rows_of(*({"prompt": "p" * size, "completion": f" {'c' * size}\n"} for size in (1, 2, 3, 4)))
    assert kept(rows, min_prompt_characters=2, max_prompt_characters=3)[0] == ["2", "3"]
    assert kept(rows, min_completion_characters=2, max_completion_characters=3) == (
        ["2", "3"],
        [("1", Fault.COMPLETION_LENGTH, "1 characters"), ("4", Fault.COMPLETION_LENGTH, "4 characters")],
    )
    assert kept(rows, max_prompt_characters=1)[1][0] == ("2", Fault.PROMPT_LENGTH, "2 characters")


def test_each_kind_of_row_has_the_lengths_of_what_it_holds() -> None:
    rows = rows_of(
        {"prompt": "12345"},
        {"messages": [message("system", "123"), *chat("12", "1234567")]},
        {"text": "1234567890"},
        {"prompt": "12345", "chosen": "123", "rejected": "1234567"},
        {"prompt": chat("1", "2", "3"), "completion": [message("assistant", "1234567")]},
    )
    assert kept(rows, min_prompt_characters=5)[0] == ["1", "2", "3", "4", "5"]  # turns are lines
    assert [number for number, *_ in kept(rows, min_prompt_characters=7)[1]] == ["1", "2", "4", "5"]
    assert [number for number, *_ in kept(rows, min_completion_characters=4)[1]] == ["4"]
    assert [number for number, *_ in kept(rows, max_completion_characters=6)[1]] == ["2", "3", "4", "5"]


# --- refusals --------------------------------------------------------------------------------------------------


def test_refusals_go_where_they_are_learned() -> None:
    rows = rows_of(
        {"prompt": "Help me.", "completion": REFUSAL},
        {"prompt": "Help me.", "completion": "Gladly."},
        {"prompt": "Help me.", "chosen": REFUSAL, "rejected": "Gladly."},
        {"prompt": "Help me.", "chosen": "Gladly.", "rejected": REFUSAL},
        {"messages": chat("Help me.", REFUSAL, "Please.", "Gladly.")},
        {"messages": chat(REFUSAL, "Why not?")},
        {"prompt": chat("Help me.", REFUSAL, "Please."), "completion": [message("assistant", "Gladly.")]},
        {"prompt": REFUSAL},
    )
    stay, gone = kept(rows, refusals=True)
    assert stay == ["2", "4", "6", "7", "8"]
    assert gone[0] == ("1", Fault.REFUSAL, REFUSAL)


# --- language --------------------------------------------------------------------------------------------------

ENGLISH = {"prompt": "What is the capital of France?", "completion": "Paris, which lies on the Seine."}
GERMAN = {"prompt": "Was ist die Hauptstadt von Frankreich?", "completion": "Paris, das an der Seine liegt."}
CHINESE = {"prompt": "法国的首都是什么?", "completion": "巴黎,位于塞纳河畔。"}
CODE = {"prompt": "def f(x):", "completion": "\n    return [y ** 2 for y in x if y > 0]"}
MATHS = {"prompt": r"\frac{x^2-1}{x-1} = 3", "completion": r"$x = 2$"}
NUMBERS = {"prompt": "3 + 4 = ", "completion": "7"}
SYMBOLS = {
    "prompt": "0123456789:;<=>?@",
    "completion": "ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~",
}
SHORT = {"prompt": "Hi", "completion": "Hello"}


def test_rows_surely_in_another_language_go() -> None:
    rows = rows_of(ENGLISH, GERMAN, CHINESE, CODE, MATHS, NUMBERS, SHORT, SYMBOLS)
    stay, gone = kept(rows, languages=["en"])
    assert stay == ["1", "4", "5", "6", "7", "8"]
    assert gone == [("2", Fault.LANGUAGE, "de"), ("3", Fault.LANGUAGE, "zh")]
    assert kept(rows[7:], languages=["en"], min_language_probability=0.1)[0] == ["8"]
    assert kept(rows[:3], languages=["de"])[0] == ["2"]
    assert kept(rows[:3], languages=["de", "zh"])[0] == ["2", "3"]
    assert kept(rows[:3], languages=["de"], min_language_probability=0.0)[0] == ["1", "2", "3"]


def test_code_and_formulas_are_not_looked_at() -> None:
    """In a row of any language they are mostly English words and letters."""
    code = "for number in range(10):\n    print('the next one is', number)\n" * 20
    formula = r"\text{area of the left part} + \text{area of the right part} = \text{total area}" * 5
    rows = rows_of(
        {"prompt": "请写一个循环。", "completion": f"好的,请看:\n```python\n{code}```"},
        {"prompt": "求总面积。", "completion": f"我们有 ${formula}$,所以面积是五。"},
        {"prompt": "求总面积。", "completion": f"\\[\n{formula}\n\\]\n所以面积是五。"},
        {"prompt": "Write a loop.", "completion": f"Here it is, and it prints ten numbers:\n```python\n{code}"},
    )
    assert kept(rows, languages=["zh"])[0] == ["1", "2", "3"]
    assert kept(rows, languages=["en"])[0] == ["4"]


def test_the_rejected_completion_may_be_in_another_language() -> None:
    english, other = ENGLISH["completion"], f"{GERMAN['prompt']} {GERMAN['completion']}" * 3
    rows = rows_of(
        {"prompt": "?", "chosen": english, "rejected": other}, {"prompt": "?", "chosen": other, "rejected": english}
    )
    assert kept(rows, languages=["en"])[0] == ["1"]


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'no language "xx"; known: .*de, .*en,') as caught:
        make_filters(FilterSettings(languages=["en", "xx"]))
    assert "data.filters.languages" in str(caught.value.fix)


# --- repetition ------------------------------------------------------------------------------------------------


def test_rows_that_differ_in_case_and_white_space_alone_are_repeated() -> None:
    rows = rows_of(
        {"prompt": "Add 1 and 2.", "completion": "It is 3.", "source": "x"},
        {"prompt": "add  1\nand 2. ", "completion": "IT IS 3.", "source": "y"},
        {"prompt": "Add 1 and 2.", "completion": "3"},
        {"prompt": "Add 1 and 2"},
        {"prompt": chat("add 1 and 2.")},
        {"prompt": "Add 1 and 2.", "chosen": "It is 3.", "rejected": "4"},
        {"prompt": "Add 1 and 2.", "chosen": "4", "rejected": "It is 3."},
        {"prompt": "Add 1 and 2.", "chosen": "it is 3.", "rejected": " 4"},
        {"prompt": "Add 1 and 2.", "completion": "It is 3.", "label": False},
        {"prompt": "Add 1 and 2.", "completion": "It is 3.", "label": True},
    )
    stay, gone = kept(rows, duplicates=True)
    assert stay == ["1", "3", "4", "5", "6", "7", "9", "10"]
    assert gone == [("2", Fault.REPEATED, "as a.jsonl:1"), ("8", Fault.REPEATED, "as a.jsonl:6")]


def test_near_duplicates_go_and_the_first_stays() -> None:
    slip = TALE.replace("donkey", "horse")
    other = "A baker had two daughters, and neither of them liked bread, so that he sold all of it in the next town."
    rows = rows_of(
        {"prompt": "Tell me a tale.", "completion": TALE},
        {"prompt": "Tell me a tale.", "completion": slip},
        {"prompt": "Tell me a tale.", "completion": other},
        {"prompt": "tell me a  tale.", "completion": slip.upper()},
    )
    stay, gone = kept(rows, near_duplicates=0.7)
    assert stay == ["1", "3"]
    assert [(number, fault) for number, fault, _ in gone] == [("2", Fault.NEAR_DUPLICATE), ("4", Fault.NEAR_DUPLICATE)]
    assert all(detail.endswith("like a.jsonl:1") and 0.7 <= float(detail[:4]) < 1 for *_, detail in gone)
    assert kept(rows, near_duplicates=0.7) == (stay, gone)
    assert kept(list(reversed(rows)), near_duplicates=0.7)[0] == ["4", "3"]


def test_one_long_context_with_other_questions_or_answers_is_no_near_duplicate() -> None:
    rows = rows_of(
        {"prompt": f"{TALE} What did the cat ask for?", "completion": "A pair of boots and a bag."},
        {"prompt": f"{TALE} Who took the mill?", "completion": "The eldest of the three sons."},
        {"prompt": TALE, "chosen": "The cat kept its promise in the end.", "rejected": "Then they all went home."},
        {"prompt": TALE, "chosen": "They lived on bread and cheese.", "rejected": "Nobody knows what came next."},
        {"prompt": "Compute 31 + 4 * 7 - 2.", "completion": "31 + 28 - 2 = 57"},
        {"prompt": "Compute 31 - 4 * 7 + 2.", "completion": "31 - 28 + 2 = 5"},
    )
    assert kept(rows, near_duplicates=0.5)[1] == []


def test_near_duplicates_are_found_without_spaces_between_words() -> None:
    text = "从前有一个磨坊主,他有三个儿子。大儿子得到了磨坊,二儿子得到了驴子,小儿子只得到了一只猫。"
    rows = rows_of(
        {"text": text},
        {"text": text.replace("驴子", "马")},
        {"text": "她每天早上都去市场,买新鲜的蔬菜。下午读书,晚上写信,睡前喝茶。"},
    )
    assert kept(rows, near_duplicates=0.7)[0] == ["1", "3"]


@pytest.mark.parametrize(("threshold", "words", "found"), [(0.9, 1, True), (0.9, 12, False), (0.6, 12, True)])
def test_the_threshold_is_that_of_jaccard_on_shingles(threshold: float, words: int, found: bool) -> None:
    tokens = [f"word{n}" for n in range(300)]
    changed = [f"other{n}" if n % 25 == 12 and n // 25 < words else token for n, token in enumerate(tokens)]
    one, other = shingles(" ".join(tokens)), shingles(" ".join(changed))
    jaccard = len(one & other) / len(one | other)
    assert (jaccard >= threshold) is found
    assert abs(jaccard - threshold) > 0.05  # more than the estimate errs by
    rows = rows_of({"text": " ".join(tokens)}, {"text": " ".join(changed)})
    assert bool(kept(rows, near_duplicates=threshold)[1]) is found


def test_shingles_of_short_texts() -> None:
    assert shingles("") == set()
    assert shingles("a + b") == {"a + b"}
    assert shingles("A + b = c.") == {"a + b = c", "+ b = c ."}


# --- while rows are read ---------------------------------------------------------------------------------------


def write(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_what_is_left_out_is_told_with_its_place_and_refuses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [
        ENGLISH,
        ENGLISH,
        GERMAN,
        {"prompt": "Help me.", "completion": REFUSAL},
        ENGLISH | {"source": "another"},
        {"prompt": "Hi", "completion": "Hello to you."},
    ]
    source = write(tmp_path / "a.jsonl", records)
    filters = FilterSettings(min_prompt_characters=3, refusals=True, languages=["en"], duplicates=True)
    with caplog.at_level(logging.WARNING):
        rows = load_rows(DataSettings(source=source, filters=filters), seed=0)
    assert [row.origin for row in rows] == [f"{source}:1"]
    assert "5 rows left out, 1 kept" in caplog.text
    assert f"1 refusal: {source}:4 ({REFUSAL})" in caplog.text
    assert f"1 in another language: {source}:3 (de)" in caplog.text
    assert f"1 repeated but for case and white space: {source}:5 (as {source}:1)" in caplog.text
    assert f"1 duplicate row: {source}:2 (as {source}:1)" in caplog.text
    assert f"1 prompt too short or too long: {source}:6 (2 characters)" in caplog.text
    assert load_rows(DataSettings(source=source), seed=0)[1:] != []


def test_rows_counts_those_that_the_filters_keep(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": "p" * size, "completion": "c"} for size in range(1, 9)])
    settings = DataSettings(source=source, rows=3, filters=FilterSettings(min_prompt_characters=4))
    scan = scan_rows(settings, seed=0)
    assert [row.origin for row in scan.rows] == [f"{source}:{line}" for line in (4, 5, 6)]
    assert scan.tally.counts == {Fault.PROMPT_LENGTH: 3}


def test_filters_judge_rows_without_prompt_style(tmp_path: Path) -> None:
    """The words that a style puts around each question make questions neither long nor alike."""
    problems = [
        {"question": "What is 2 + 3 in all?", "answer": "It is 2 + 3 = 5.\n#### 5"},
        {"question": "How many legs have 2 cats?", "answer": "They have 2 * 4 = 8 legs.\n#### 8"},
    ]
    path = write(tmp_path / "a.jsonl", problems)
    filters = FilterSettings(max_prompt_characters=30, near_duplicates=0.5)
    rows = load_rows(DataSettings(source="gsm8k", path=path, prompt_style="r1_zero", filters=filters), seed=0)
    assert [len(str(row.prompt)) > 200 for row in rows] == [True, True]
    prompts = write(tmp_path / "b.jsonl", [{"prompt": problem["question"]} for problem in problems])
    assert len(load_rows(DataSettings(source=prompts, prompt_style="r1_zero", filters=filters), seed=0)) == 2


def test_every_fault_of_a_filter_is_one_that_is_left_out() -> None:
    faults = ("PROMPT_LENGTH", "COMPLETION_LENGTH", "REFUSAL", "LANGUAGE", "REPEATED", "NEAR_DUPLICATE")
    assert {Fault[name] for name in faults} <= LEFT_OUT


@pytest.mark.parametrize(
    ("settings", "imported"),
    [
        ({"refusals": True, "duplicates": True, "min_prompt_characters": 1}, []),
        ({"languages": ["en"]}, ["py3langid"]),
        ({"near_duplicates": 0.7}, ["datasketch"]),
    ],
)
def test_a_library_is_imported_when_its_filter_is_on(settings: dict[str, Any], imported: list[str]) -> None:
    script = (
        "import sys\nfrom posttrain.data.filters import make_filters\nfrom posttrain.settings import FilterSettings\n"
        f"make_filters(FilterSettings(**{settings!r}))\n"
        "print([name for name in ('py3langid', 'datasketch', 'numpy', 'torch') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert [name for name in json.loads(out.replace("'", '"')) if name != "numpy"] == imported
    assert imported or "numpy" not in out


ALL = FilterSettings(refusals=True, languages=["en"], duplicates=True, near_duplicates=0.7)


@needs_shared
@pytest.mark.parametrize(("name", "rows"), [("gsm8k", 1319), ("math500", 500)])
def test_problems_that_people_wrote_all_stay(name: str, rows: int) -> None:
    settings = DataSettings(source=name, path=str(SHARED / name), split="test", filters=ALL)
    scan = scan_rows(settings, seed=0)
    assert (len(scan.rows), scan.tally.counts) == (rows, {})
