"""The notebooks: each runs from top to bottom on few rows and bears out its words; the committed file has outputs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FEW_ROWS: dict[str, dict[str, Any]] = {  # in the place of the values of a notebook's parameters cell
    "dpo": {
        "RUNS": "elsewhere/runs",
        "SEED": 1,
        "DEMONSTRATIONS": 96,
        "SAMPLED_PROBLEMS": 60,
        "TEST_PROBLEMS": 40,
        "BIASED_PAIRS": 120,
    },
}
MAX_KILOBYTES = 400
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s'"(])/(?:\w[\w.-]*/)+\S*""")


def cells_of(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def with_values(source: str, values: dict[str, Any]) -> str:
    """Return a cell of assignments with other values; each name must be assigned there, and none left out."""
    assigned = re.findall(r"^(\w+) = ", source, flags=re.MULTILINE)
    assert sorted(assigned) == sorted(values), f"the parameters are {assigned}"
    return "".join(f"{name} = {value!r}\n" for name, value in values.items())


def run_cells(cells: list[dict[str, Any]], values: dict[str, Any]) -> dict[str, Any]:
    """Run code cells in a fresh namespace, the tagged one with other values, and return what they defined.

    A cell that raises is named by its number and source.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        source = source_of(cell)
        if "parameters" in cell["metadata"].get("tags", ()):
            source = with_values(source, values)
        try:
            exec(compile(source, f"<cell {number}>", "exec"), namespace)
        except BaseException as error:
            error.add_note(f"in cell {number}:\n{source}")
            raise
    return namespace


def check_dpo(found: dict[str, Any]) -> None:
    """What the notebook says in words holds at any size; how much better DPO is does not."""
    assert found["run"] == Path("elsewhere/runs/dpo_notebook")
    assert (found["run"] / "dpo/artifact/adapter_model.safetensors").is_file()
    assert (found["merged"] / "model.safetensors").is_file()
    assert found["finished"]["pairs"] == len(found["pairs"]) > 0
    assert all(found["series"](f"rewards/{name}")[0] == 0 for name in ("margins", "accuracies"))
    assert found["series"]("rewards/margins")[-1] > 0
    baseline, model = found["comparison"].models
    assert (baseline.name, model.name) == ("sft", "dpo")
    assert model.against_baseline.interval.low <= model.against_baseline.difference
    assert model.summary["problems"] == len(found["groups"]["all"]) == 40
    assert found["sizes"]["4 bits"] < 0.6
    assert any(finding.startswith("prefers longer answers") for finding in found["report"]["bias"]["findings"])
    assert found["scores"]["wrong and padded"] > found["scores"]["right"]


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {"dpo": check_dpo}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_bears_out_what_it_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as it sets it, but not for the tests after it
    with plt.rc_context():
        CHECKS[path.stem](run_cells(cells_of(path), FEW_ROWS[path.stem]))
        plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_a_whole_run_without_errors_warnings_and_paths(path: Path) -> None:
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    printed = "".join("".join(output.get("text", ())) for output in outputs)
    assert ABSOLUTE_PATH.findall(printed) == []
    assert path.stat().st_size < 1000 * MAX_KILOBYTES


def test_a_failing_cell_is_named_with_its_source() -> None:
    sources = ["ROWS = 400  # many", "half = ROWS // 2", "print(half)\nhalf / 0"]
    cells: list[dict[str, Any]] = [{"metadata": {}, "source": [source]} for source in sources]
    cells[0]["metadata"]["tags"] = ["parameters"]
    with pytest.raises(ZeroDivisionError) as caught:
        run_cells(cells, {"ROWS": 4})
    assert caught.value.__notes__ == ["in cell 3:\nprint(half)\nhalf / 0"]


def test_parameters_that_a_notebook_lacks_are_refused() -> None:
    with pytest.raises(AssertionError, match="the parameters are"):
        with_values("ROWS = 400\nSEED = 0\n", {"ROWS": 4})


def test_absolute_paths_are_told_from_tags_and_fractions() -> None:
    assert ABSOLUTE_PATH.findall("saved in /home/me/runs, from '/tmp/x/y'") == [" /home/me/runs,", "'/tmp/x/y'"]
    assert ABSOLUTE_PATH.findall("runs/dpo: 8/4/2 = 1 </think> <answer>1</answer>") == []
