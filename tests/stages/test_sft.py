"""What fine-tuning does beyond what every stage does: how it counts its rows."""

from collections import Counter
from collections.abc import Callable

import pytest

from posttrain.data.loader import Loader
from posttrain.runs.directory import StageRun
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings, ModelSettings, SftSettings
from posttrain.stages.sft import sft


@pytest.mark.parametrize(
    ("epochs", "max_steps", "sizes"),
    [(1.0, 0, [4, 4, 2]), (1.5, 0, [4, 4, 4, 3]), (0.01, 0, [1]), (1.0, 4, [4, 4, 4, 4])],
)
def test_rows_are_trained_as_often_as_the_epochs_say(
    model_directory: str,
    run_stage: Callable[..., StageRun],
    monkeypatch: pytest.MonkeyPatch,
    epochs: float,
    max_steps: int,
    sizes: list[int],
) -> None:
    """Steps are full up to the last, which takes what is left, so that no row is trained more often than asked."""
    dealt: list[list[str]] = []
    deal = Loader.next

    def watched(loader: Loader, n: int) -> list[str]:
        dealt.append(deal(loader, n))
        return dealt[-1]

    monkeypatch.setattr(Loader, "next", watched)
    settings = SftSettings(
        model=ModelSettings(name_or_path=model_directory, dtype="float32", device="cpu"),
        data=DataSettings(rows=10),
        rows_per_step=4,
        num_train_epochs=epochs,
        max_steps=max_steps,
    )
    run = run_stage(sft, settings, "sft")
    assert [len(batch) for batch in dealt] == sizes
    times = Counter(row_id for batch in dealt for row_id in batch)
    assert max(times.values()) - min(times.values() if len(times) == 10 else [0]) <= 1
    assert read_rows(run.path / "metrics.jsonl")[-1]["epoch"] == pytest.approx(sum(sizes) / 10)
