"""Supervised fine-tuning: the mean negative log-likelihood of completions, with its own loop.

Floor 5. Rows become prompt trees of one branch; a step's loss is the mean over all its trained tokens, however the
rows fall into micro-batches, and packed rows never see one another.
"""

from functools import partial

from posttrain.data.chat import drop_overlong, render_training_tree
from posttrain.data.loader import Loader
from posttrain.data.sources import load_rows, require_kind
from posttrain.models.lm import load_model, save_model
from posttrain.runs.directory import StageRun
from posttrain.settings import SftSettings
from posttrain.stages.optimize import Updater, steps_of_rows, token_mean_loss, trained_tokens


def sft(settings: SftSettings, run: StageRun) -> None:
    """Fine-tune a model on its rows and publish it as the run's artifact."""
    rows = load_rows(settings.data, seed=settings.seed)
    require_kind(rows, ("prompt_completion", "messages", "text"), "sft")
    loaded = load_model(settings.model, seed=settings.seed)
    trees, dropped = drop_overlong(
        rows, lambda row: render_training_tree(row, loaded.tokenizer), max_length=loaded.fit(settings.data.max_length)
    )
    loader = Loader(list(trees), settings.seed)
    rows_of_step = steps_of_rows(settings, len(trees))
    updater = Updater(loaded, settings, num_updates=len(rows_of_step))
    progress = {"num_tokens": 0}
    if run.checkpoint:
        updater.restore(run.checkpoint)
        loader.restore(run.checkpoint.state["loader"])
        progress = dict(run.checkpoint.state["progress"])
    for step in run.steps(len(rows_of_step)):
        batch = [trees[row_id] for row_id in loader.next(rows_of_step[step - 1])]
        with run.phase("update"):
            metrics = updater.update(batch, token_mean_loss(batch))
        progress["num_tokens"] += trained_tokens(batch)
        run.log(step, metrics | {"epoch": loader.epoch, **progress})
        run.keep_policy(step, partial(save_model, loaded))
        run.save(step, lambda: updater.state({"loader": loader.state(), "progress": progress}))
    run.publish_artifact(partial(save_model, loaded))
    run.finish({"rows": len(trees), "dropped_rows": len(dropped), "steps": len(rows_of_step), **progress})
