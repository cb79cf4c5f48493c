"""Held-out preference pairs: whether a model finds the chosen completion likelier than the rejected one.

Floor 4. A pair is one prompt tree of two branches; nothing is sampled. With a reference the numbers are DPO's implicit
rewards at beta 1, log pi(y|x) - log ref(y|x) (Rafailov et al. 2023, arXiv 2305.18290, eq. 5): their order does not
depend on beta. Without one they are log-probs, which a longer completion has less of; the mean over tokens stands
beside them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from posttrain.data.chat import drop_overlong
from posttrain.data.pairs import render_preference
from posttrain.data.rows import Row as DataRow
from posttrain.evals.pairs import pair_report
from posttrain.evals.references import Distance, open_reference
from posttrain.evals.samples import Answers, Category, Row, Sample, mean_with_interval, metric, subsets_of
from posttrain.evals.tasks import Task
from posttrain.models.lm import load_model
from posttrain.records import TokenTree
from posttrain.rewards.arguments import completion_text, prompt_text
from posttrain.runs.directory import StageRun
from posttrain.settings import EvalSettings


@contextmanager
def preference_answers(task: Task, settings: EvalSettings, rows: Sequence[DataRow], run: StageRun) -> Iterator[Answers]:
    """Yield the pairs of a task, and what says how likely a model finds their completions."""
    loaded = load_model(settings.model, seed=settings.seed, trainable=False)
    named = settings.reference or settings.model.name_or_path  # against itself, where none is named: read once
    reference = open_reference(settings.model.model_copy(update={"name_or_path": named}), loaded, settings.model)
    trees, dropped = drop_overlong(
        rows, lambda row: render_preference(row, loaded.tokenizer), max_length=settings.data.max_length
    )
    by_id = {row.id: row for row in rows}

    def answer(ids: Sequence[str]) -> list[Sample]:
        asked = [trees[row_id] for row_id in ids]
        with run.phase("score"):
            found = iter(reference.of_trees(asked))
        return [
            compare_pair(by_id[row_id], tree, next(found), next(found), measured=settings.reference is not None)
            for row_id, tree in zip(ids, asked, strict=True)
        ]

    yield Answers(list(trees), len(dropped), loaded.tokenizer.chat_template, answer)


def compare_pair(row: DataRow, tree: TokenTree, chosen: Distance, rejected: Distance, *, measured: bool) -> Sample:
    """Return what a model makes of a pair; `measured` says whether a reference's log-probs are taken off."""
    numbers = [d.policy_logprob - (d.ref_logprob if measured else 0.0) for d in (chosen, rejected)]
    lengths = [len(branch.ids) for branch in tree.branches]
    by_token = [number / length for number, length in zip(numbers, lengths, strict=True)]
    right = numbers[0] > numbers[1]
    assert row.prompt is not None
    assert row.chosen is not None
    assert row.rejected is not None
    texts = [completion_text(text) for text in (row.chosen, row.rejected)]
    return Sample(
        problem_id=row.id,
        sample=0,
        prompt=prompt_text(row.prompt),
        completion=texts[0] if right else texts[1],
        num_tokens=lengths[0] if right else lengths[1],
        stop_reason="",
        logprob=chosen.policy_logprob / lengths[0],
        category=str(Category.CORRECT if right else Category.WRONG_ANSWER),
        score=float(right),
        gold=texts[0],
        subsets=subsets_of(row.columns),
        further={
            "chosen": numbers[0],
            "rejected": numbers[1],
            "margin": numbers[0] - numbers[1],
            "by_token": float(by_token[0] > by_token[1]),
            "chosen_tokens": lengths[0],
            "rejected_tokens": lengths[1],
            "rejected_text": texts[1],
        },
    )


def score_identity(task: Task, settings: EvalSettings) -> dict[str, Any]:
    """Return which number orders a pair: two models are compared by the same one."""
    return {"score": "log-prob" if settings.reference is None else "implicit reward"}


def summarise_preferences(rows: Sequence[Row]) -> dict[str, Any]:
    """Return accuracy and margin under TRL's names, and how both hang on length."""
    chosen, rejected, chosen_tokens, rejected_tokens = (
        np.array([row[name] for row in rows], dtype=float)
        for name in ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
    )
    report = pair_report(chosen, rejected, chosen_tokens, rejected_tokens)
    del report["calibration"]  # of probabilities at beta 1, which no model was trained with
    return {
        "results": metric("rewards/accuracies", rows, "score") | metric("rewards/margins", rows, "margin"),
        "margin": mean_with_interval(rows, "margin"),
        "accuracy_by_token": mean_with_interval(rows, "by_token"),
        "pairs": report,
    }


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    score, margin = summary["score"], summary["margin"]
    return (
        f"{summary['task']}: chosen above rejected in {100 * score['mean']:.1f}% (95% CI {100 * score['low']:.1f} to "
        f"{100 * score['high']:.1f}), by token {100 * summary['accuracy_by_token']['mean']:.1f}%, margin "
        f"{margin['mean']:+.3g} nats ({margin['low']:+.3g} to {margin['high']:+.3g}), {summary['problems']} pairs"
    )
