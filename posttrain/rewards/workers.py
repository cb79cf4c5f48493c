"""A reward function that runs in processes: the step's prompts shared out, failing completions found out one by one.

Floor 3. What the function does to its process costs a deadline, never the run.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from posttrain.errors import RewardError
from posttrain.rewards.arguments import groups
from posttrain.rewards.failures import Failed
from posttrain.rewards.signatures import FORMS
from posttrain.rewards.worker import Hung, Lost, Worker
from posttrain.settings import RewardWorkerSettings

SHORTEST_RETRY = 1.0  # seconds that a completion by itself has at least, where the deadline is longer
MAX_HANGS = 3  # of single completions in one call; the rest of them is then given up

Arguments = Mapping[str, list[Any]]


class WorkerReward:
    """A function of a user's file (or a built-in, where `file` is None) as a reward function; ends with its context.

    A completion on which the function raises, hangs or ends its process is `Failed`; one that returns what is no
    score raises RewardError.
    """

    def __init__(
        self,
        name: str,
        file: str | None,
        settings: RewardWorkerSettings,
        *,
        options: Mapping[str, Any] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        task = {"name": name, "file": file, "options": options, "memory_gb": settings.memory_gb}
        self._name, self._file, self._deadline = name, file, settings.deadline
        self._closed = False
        self._workers = [Worker(task, settings, lambda: self._closed or stopping()) for _ in range(settings.processes)]
        # Its threads live as long as this does: a worker dies with the thread that started it.
        self._threads = ThreadPoolExecutor(settings.processes) if settings.processes > 1 else None
        self._columns: frozenset[str] | None = None
        self.form = ""

    def __enter__(self) -> Self:
        """Load the function once; raises RewardError where it cannot be."""
        try:
            said = self._workers[0].start()
        except Lost as error:
            raise RewardError(f"reward {self._name}: loading {self._file} {error}") from None
        self._columns = None if said["columns"] is None else frozenset(said["columns"])
        self.form = said.get("form", "")
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True  # a thread that is still at work ends, and starts no process any more
        if self._threads is not None:
            self._threads.shutdown()
        for worker in self._workers:
            worker.close()

    @property
    def taken_for(self) -> str:
        """In words, which trainer's form the function was found to have."""
        place = Path(self._file).name if self._file else "built in"
        return f"reward {self._name} ({place}) has the form of {self.form}: {FORMS[self.form]}"

    def __call__(self, **arguments: list[Any]) -> list[float | Failed | None]:
        """Return a score for each completion, None where it has none, Failed where the function failed on it."""
        count = len(arguments["completions"])
        shares = _shares(list(groups(arguments["prompts"], arguments)), len(self._workers))
        kept = {name: values for name, values in arguments.items() if self._sends(name)}
        tasks = [({name: [values[i] for i in share] for name, values in kept.items()}, share) for share in shares]
        run = map if self._threads is None else self._threads.map
        scores: list[float | Failed | None] = [None] * count
        found = run(lambda worker, task: self._score(worker, task[0]), self._workers, tasks)
        for (_, share), values in zip(tasks, found, strict=True):
            for place, value in zip(share, values, strict=True):
                scores[place] = value
        return scores

    def _sends(self, name: str) -> bool:
        return self._columns is None or name in self._columns or name in ("prompts", "completions")

    def _score(self, worker: Worker, arguments: Arguments) -> list[float | Failed | None]:
        count = len(arguments["completions"])
        values, _ = self._ask(worker, arguments, self._deadline)
        if count == 1 or not all(isinstance(value, Failed) for value in values):
            return values
        seconds = min(self._deadline, max(SHORTEST_RETRY, 2 * self._deadline / count))
        single, hangs = [], 0
        for place in range(count):
            if hangs == MAX_HANGS:
                single += values[place:]
                break
            one = {name: column[place : place + 1] for name, column in arguments.items()}
            found, hung = self._ask(worker, one, seconds)
            single += found
            hangs += hung
        return single

    def _ask(self, worker: Worker, arguments: Arguments, seconds: float) -> tuple[list[float | Failed | None], bool]:
        """Return the scores, and whether the function hung."""
        try:
            values = worker.score(arguments, seconds)
        except Lost as error:
            return [Failed(str(error))] * len(arguments["completions"]), isinstance(error, Hung)
        return [Failed(value["failed"]) if isinstance(value, dict) else value for value in values], False


def _shares(groups: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Return the places of whole groups in at most `count` shares of about the same number of completions."""
    total = sum(map(len, groups))
    shares: list[list[int]] = [[] for _ in range(count)]
    done = 0
    for group in groups:
        shares[min(done * count // max(total, 1), count - 1)] += group
        done += len(group)
    return [share for share in shares if share]
