"""The completions of an evaluation's batch, kept one by one: a kill at any instant costs none that has ended.

Floor 4.
"""

from collections.abc import Sequence
from pathlib import Path

from posttrain.records import Completion, Prompt, StopReason
from posttrain.runs import durable
from posttrain.runs.logs import append_rows, drop_torn_line, read_rows

JOURNAL = "completions.jsonl"  # in the run's directory, of the batch in progress


class Journal(dict[tuple[int, int], Completion]):
    """The completions of prompts, by place of the prompt and of the sample, as engines take and fill them.

    Those that the file has of this model and these prompts are there from the beginning; each that is added is appended
    to it. A file of another batch is deleted.
    """

    def __init__(self, path: Path, model: str, prompts: Sequence[Prompt]) -> None:
        super().__init__()
        self._path, self._model, self._ids = path, model, [prompt.id for prompt in prompts]
        drop_torn_line(path)
        places = {prompt_id: place for place, prompt_id in enumerate(self._ids)}
        rows = read_rows(path)
        kept = [row for row in rows if row["model"] == model and row["prompt_id"] in places]
        for row in kept:
            completion = Completion(
                tuple(row["ids"]), tuple(row["engine_logprobs"]), StopReason(row["stop_reason"]), row["text"]
            )
            super().__setitem__((places[row["prompt_id"]], row["sample"]), completion)
        if rows and not kept:
            forget(path)

    def __setitem__(self, place: tuple[int, int], completion: Completion) -> None:
        """Keep a completion that has ended."""
        super().__setitem__(place, completion)
        prompt, sample = place
        row = {
            "model": self._model,
            "prompt_id": self._ids[prompt],
            "sample": sample,
            "ids": completion.ids,
            "engine_logprobs": completion.engine_logprobs,
            "stop_reason": completion.stop_reason.value,
            "text": completion.text,
        }
        append_rows(self._path, [row])


def forget(path: Path) -> None:
    """Delete a journal, if there is one: what it held is kept elsewhere."""
    if path.is_file():
        durable.remove_tree(path)
