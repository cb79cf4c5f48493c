"""Multiple-choice questions, answered by the log-probs of their choices; nothing is sampled.

Floor 4. A question is one prompt tree: its prompt is computed once, and each choice is a branch. The metrics are
lm-evaluation-harness's: `acc` takes the choice with the largest summed log-prob, `acc_norm` that with the largest
log-prob per byte of the choice, without the space before it. (The harness divides by characters, which in ASCII are the
bytes.) Where several choices are best, one of them is drawn, each as likely as the others, by the seed and the
question's id: the harness takes the first, which favours A. Two choices may say the same, and logits in bfloat16 are
rounded to few values.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from posttrain.data.chat import drop_overlong, render_choices
from posttrain.data.rows import Row as DataRow
from posttrain.data.trees import MicroBatch, build_batch, cut_micro_batches, in_order
from posttrain.engines import Interrupted
from posttrain.evals.calibration import calibration_error, reliability
from posttrain.evals.samples import Answers, Category, Row, Sample, mean_with_interval, metric, subsets_of
from posttrain.evals.tasks import Task
from posttrain.models.lm import LoadedModel, load_model
from posttrain.models.logprobs import completion_logprobs
from posttrain.records import TokenTree
from posttrain.rewards.arguments import prompt_text
from posttrain.runs.directory import StageRun
from posttrain.seeds import derive_seed
from posttrain.settings import EvalSettings

FORWARD_TOKENS = 4096  # that the model reads at a time
TIE = 1e-6  # nats: two equal numbers may be this far apart by rounding
CONFIDENCE_BINS = 10


@contextmanager
def choice_answers(task: Task, settings: EvalSettings, rows: Sequence[DataRow], run: StageRun) -> Iterator[Answers]:
    """Yield the questions of a task, and what answers them by the log-probs of their choices."""
    assert task.score is not None
    score = task.score
    loaded = load_model(settings.model, seed=settings.seed, trainable=False)
    trees, dropped = drop_overlong(
        rows, lambda row: render_choices(row, loaded.tokenizer), max_length=settings.data.max_length
    )
    by_id = {row.id: row for row in rows}

    def answer(ids: Sequence[str]) -> list[Sample]:
        asked = [trees[row_id] for row_id in ids]
        with run.phase("score"):
            found = choice_logprobs(loaded, asked, FORWARD_TOKENS, should_stop=lambda: run.stop_requested)
        return [
            answer_sample(by_id[row_id], tree, logprobs, score=score, seed=settings.seed)
            for row_id, tree, logprobs in zip(ids, asked, found, strict=True)
        ]

    yield Answers(list(trees), len(dropped), loaded.tokenizer.chat_template, answer)


@torch.no_grad()
def choice_logprobs(
    loaded: LoadedModel, trees: Sequence[TokenTree], max_tokens: int, *, should_stop: Callable[[], bool] = lambda: False
) -> list[list[tuple[float, ...]]]:
    """Return the log-prob of each token of each branch of each tree; equal branches of a tree are computed once.

    `max_tokens` is the budget of one forward pass: it sets memory, never the result. Raises Interrupted when
    `should_stop` says so, which is asked before every pass.
    """
    distinct = [TokenTree(tree.prompt_ids, tuple(dict.fromkeys(tree.branches))) for tree in trees]
    found: list[tuple[MicroBatch, list[tuple[float, ...]]]] = []
    for micro_batch in cut_micro_batches(distinct, max_tokens, layout=loaded.layout) if distinct else ():
        if should_stop():
            raise Interrupted
        batch = build_batch(micro_batch.trees, layout=loaded.layout, pad_id=loaded.pad_id).to(loaded.device)
        found.append((micro_batch, batch.unpad(completion_logprobs(loaded.model, batch).logprobs)))
    flat = iter(in_order(found))
    known = [{branch: next(flat) for branch in tree.branches} for tree in distinct]
    return [[of[branch] for branch in tree.branches] for tree, of in zip(trees, known, strict=True)]


def answer_sample(
    row: DataRow, tree: TokenTree, token_logprobs: Sequence[Sequence[float]], *, score: str, seed: int
) -> Sample:
    """Return what the log-probs of a question's choices make of it; `score` is the metric that counts."""
    assert row.prompt is not None
    columns = row.columns
    choices, right = columns["choices"], columns["answer"]
    logprobs = [math.fsum(each) for each in token_logprobs]
    lengths = [len(each.removeprefix(" ").encode()) for each in columns["continuations"]]
    numbers = {"acc": logprobs, "acc_norm": [each / length for each, length in zip(logprobs, lengths, strict=True)]}
    picked = {name: pick(values, seed=seed, key=row.id) for name, values in numbers.items()}
    chosen = picked[score]
    return Sample(
        problem_id=row.id,
        sample=0,
        prompt=prompt_text(row.prompt),
        completion=columns["continuations"][chosen],
        num_tokens=len(tree.branches[chosen].ids),
        stop_reason="",
        logprob=logprobs[chosen] / len(tree.branches[chosen].ids),
        category=str(Category.CORRECT if chosen == right else Category.WRONG_ANSWER),
        score=float(chosen == right),
        gold=choices[right],
        extracted=choices[chosen],
        subsets=subsets_of(columns),
        further={
            **{name: float(choice == right) for name, choice in picked.items()},
            "chosen": chosen,
            "right": right,
            "choice_logprobs": logprobs,
            "right_probability": float(_probabilities(logprobs)[right]),
            "tied": len(best(numbers[score])) > 1,
        },
    )


def best(values: Sequence[float]) -> list[int]:
    """Return the places of the largest number, and of those that rounding could have made it."""
    largest = max(values)
    return [place for place, value in enumerate(values) if largest - value <= TIE]


def pick(values: Sequence[float], *, seed: int, key: str) -> int:
    """Return the place of the largest number; of several, one drawn by the seed and the key."""
    places = best(values)
    return places[derive_seed(seed, "tie", key) % len(places)]


def summarise_choices(rows: Sequence[Row]) -> dict[str, Any]:
    """Return acc and acc_norm, under the harness's names and with 95% intervals, and the calibration of probabilities.

    The probabilities are those of the choices among themselves, from their summed log-probs; the confidence is that of
    the likeliest one, which is right as often as `acc` says.
    """
    confidence = np.array([_probabilities(row["choice_logprobs"]).max() for row in rows])
    table = reliability(np.array([row["acc"] for row in rows]), confidence, lowest=0.0, bins=CONFIDENCE_BINS)
    return {
        "results": metric("acc", rows) | metric("acc_norm", rows),
        "acc": mean_with_interval(rows, "acc"),
        "acc_norm": mean_with_interval(rows, "acc_norm"),
        "right_probability": float(np.mean([row["right_probability"] for row in rows])),
        "calibration": {"ece": calibration_error(table), "reliability": [asdict(each) for each in table]},
        "ties": float(np.mean([row["tied"] for row in rows])),
    }


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    score = summary["score"]
    results = ", ".join(f"{name} {100 * summary[name]['mean']:.1f}%" for name in ("acc", "acc_norm"))
    return (
        f"{summary['task']}: {100 * score['mean']:.1f}% right (95% CI {100 * score['low']:.1f} to "
        f"{100 * score['high']:.1f}), {results}, calibration error {summary['calibration']['ece']:.3f}, "
        f"{summary['problems']} questions"
    )


def _probabilities(logprobs: Sequence[float]) -> np.ndarray:
    """Return the probabilities `(C,)` of the choices among themselves."""
    shares = np.exp(np.array(logprobs) - max(logprobs))
    found: np.ndarray = shares / shares.sum()
    return found
