"""Real worker processes under every fault of a reward function: the trainer learns its name and goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from posttrain.engines import Interrupted
from posttrain.errors import RewardError
from posttrain.rewards import worker
from posttrain.rewards.failures import Failed, Tolerant
from posttrain.rewards.workers import WorkerReward, _shares
from posttrain.settings import RewardWorkerSettings
from tests.rewards.conftest import arguments

QUICK = RewardWorkerSettings(deadline=0.3)  # where something hangs; elsewhere a busy machine must not decide
PATIENT = RewardWorkerSettings(deadline=30.0)
FAULTY = """
import os, signal, sys, time

def scored(completions, fault):
    if "bad" in completions:
        fault()
    return [0.5] * len(completions)

def raises(completions):
    return scored(completions, lambda: 1 / 0)
def hangs(completions):
    return scored(completions, lambda: time.sleep(60))
def leaves(completions):
    return scored(completions, lambda: os._exit(0))
def exits(completions):
    return scored(completions, lambda: sys.exit("no"))
def crashes(completions):
    return scored(completions, lambda: os.kill(os.getpid(), signal.SIGSEGV))
def hoards(completions):
    return scored(completions, lambda: bytearray(2 << 30))
def multiplies(completions):
    return scored(completions, bomb)
def bomb():
    while True:
        if os.fork() == 0:
            time.sleep(60)
def holds_the_lock(completions):
    import re
    return scored(completions, lambda: re.fullmatch("(a|a)*b", "a" * 60))
"""
FAULTS = {
    "raises": r"raised ZeroDivisionError: division by zero \(mine.py:10\)",
    "hangs": "took longer than 0.5 s and was killed",
    "leaves": "ended its process, with exit code 0",
    "exits": r"raised SystemExit: no \(mine.py:16\)",
    "crashes": "ended its process, killed by SIGSEGV",
    "hoards": r"raised MemoryError \(mine.py:20\)",
    "multiplies": r"started \d+ processes and was killed",
    "holds_the_lock": "took longer than 0.5 s and was killed",
}


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Wait for a process to end."""
    for _ in range(200):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", FAULTS)
def test_only_the_culprit_fails_and_the_next_call_works(name: str, write_file: Callable[[str], str]) -> None:
    deadline = 0.5 if name in ("hangs", "holds_the_lock") else 30.0
    settings = RewardWorkerSettings(deadline=deadline, memory_gb=1.0, max_subprocesses=8)
    with WorkerReward(name, write_file(FAULTY), settings) as function:
        first, culprit, last = function(**arguments(["good", "bad", "good"]))
        assert (first, last) == (0.5, 0.5)
        assert isinstance(culprit, Failed)
        assert re.search(FAULTS[name], culprit.reason), culprit.reason
        assert function(**arguments(["good"] * 2)) == [0.5, 0.5]


BAD_RETURNS = {
    "None": "got NoneType None",
    "1.0": "got float 1.0",
    "'abc'": "got str 'abc'",
    "{'a': 1.0}": "got dict",
    "[]": "got 0 values",
    "[1.0]": "got 1 values",
    "[1.0] * 4": "got 4 values",
    "['1', '2', '3']": "got str '1' at index 0",
    "[[1.0], [1.0], [1.0]]": r"got list \[1.0\] at index 0",
    "[1.0, float('inf'), 1.0]": "got inf at index 1",
    "[1.0, 1.0, -float('inf')]": "got -inf at index 2",
    "[object(), 1.0, 1.0]": "got object <object",
    "numpy.ones((3, 1))": r"got list \[1.0\] at index 0",
    "numpy.float64(1.0)": "got one number",
    "(x for x in [1.0, 1.0, 1.0])": "got generator",
    "{1.0, 2.0, 3.0}": "got set",
    "[1j, 1.0, 1.0]": "got complex 1j at index 0",
}
GOOD_RETURNS = {
    "[1, True, None]": [1.0, 1.0, None],
    "(0.5, float('nan'), 2)": [0.5, None, 2.0],
    "numpy.array([1.0, numpy.nan, 3.0])": [1.0, None, 3.0],
}


def test_every_bad_return_is_named_and_good_ones_are_read(write_file: Callable[[str], str]) -> None:
    cases = [*BAD_RETURNS, *GOOD_RETURNS]
    text = f"import numpy\ndef mine(completions, case):\n    return [{','.join(f'lambda: {each}' for each in cases)}]"
    with WorkerReward("mine", write_file(f"{text}[case[0]]()"), PATIENT) as function:
        for number, (case, got) in enumerate(BAD_RETURNS.items()):
            with pytest.raises(RewardError, match=f"reward mine must return 3 values, .*{got}"):
                function(**arguments(["x"] * 3, case=[number] * 3))
            assert case == cases[number]
        for number, expected in enumerate(GOOD_RETURNS.values(), start=len(BAD_RETURNS)):
            assert function(**arguments(["x"] * 3, case=[number] * 3)) == expected


def test_it_raises_at_its_fiftieth_call_and_is_counted_until_it_lasts(write_file: Callable[[str], str]) -> None:
    text = (
        "calls = 0\ndef mine(completions):\n    global calls\n    calls += 1\n    assert calls < 50\n    return [1.0]"
    )
    told: list[str] = []
    with WorkerReward("mine", write_file(text), PATIENT) as worker_reward:
        function = Tolerant("mine", worker_reward, lambda _, text: told.append(text))
        for _ in range(49):
            assert function(**arguments(["x"])) == [1.0]
        assert isinstance(function(**arguments(["x"]))[0], Failed)
        assert isinstance(function(**arguments(["x"]))[0], Failed)
        (message,) = told
        assert "reward mine failed on 1 of 1 completions; the first: it raised AssertionError (mine.py:5)" in message
        assert "on row a, prompt '6 * 7?', completion 'x'" in message
        with pytest.raises(RewardError, match=r"raised AssertionError \(mine.py:5\)\n.*\n.*3 batches in a row"):
            function(**arguments(["x"]))


def test_rare_failures_do_not_end_a_run() -> None:
    batches = [[Failed("hung"), *[1.0] * 9], [1.0] * 10] * 5 + [[Failed("hung"), *[1.0] * 19]] * 5
    batch = iter(batches)
    function = Tolerant("mine", lambda **_: next(batch), lambda *_: None)
    for expected in batches:
        assert function(**arguments(["x"] * len(expected))) == expected


def test_a_rehearsal_refuses_what_fails_at_once(write_file: Callable[[str], str]) -> None:
    with WorkerReward("raises", write_file(FAULTY), PATIENT) as function:
        tolerant = Tolerant("raises", function, lambda *_: None)
        tolerant.rehearse(arguments(["good"]))
        with pytest.raises(
            RewardError, match=r"reward raises raised ZeroDivisionError.*mine.py:10\)\n  tried at the st"
        ):
            tolerant.rehearse(arguments(["good", "bad"]))


def test_many_hangs_in_one_batch_are_given_up(write_file: Callable[[str], str]) -> None:
    with WorkerReward("hangs", write_file(FAULTY), QUICK) as function:
        found = function(**arguments(["bad"] * 40 + ["good"]))
        assert all(isinstance(value, Failed) for value in found)


def test_user_code_reads_nothing_prints_freely_and_its_forks_stay_silent(write_file: Callable[[str], str]) -> None:
    text = """
import os, sys
print("loaded")
def mine(completions):
    print('{"id": 2, "values": [9.0]}')
    os.write(1, b"noise" * 100_000)
    assert sys.stdin.read() == ""
    os.fork()
    return [float(len(completions))]
"""
    with WorkerReward("mine", write_file(text), PATIENT) as function:
        for _ in range(3):
            assert function(**arguments(["x"])) == [1.0]


def test_what_it_printed_last_is_in_the_report_of_its_death(write_file: Callable[[str], str]) -> None:
    text = "import os\ndef mine(completions):\n    print('out of\\nluck', flush=True)\n    os._exit(3)"
    with WorkerReward("mine", write_file(text), PATIENT) as function:
        (failed,) = function(**arguments(["x"]))
        assert failed == Failed("ended its process, with exit code 3; the last it printed: out of luck")


def test_no_secret_is_in_its_environment(write_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_OWN"):
        monkeypatch.setenv(name, "canary-4711")
    text = "import os\ndef mine(completions):\n    return [float('canary-4711' in str(dict(os.environ)))]"
    with WorkerReward("mine", write_file(text), PATIENT) as function:
        assert function(**arguments(["x"])) == [0.0]


def test_processes_end_with_the_context_and_with_what_they_started(write_file: Callable[[str], str]) -> None:
    text = """
import os, subprocess
def mine(completions):
    return [float(os.getpid()), float(subprocess.Popen(["sleep", "60"]).pid)]
"""
    with WorkerReward("mine", write_file(text), PATIENT) as function:
        pids = [int(value) for value in function(**arguments(["x", "y"]))]  # type: ignore[arg-type]
        assert all(map(alive, pids))
    assert all(map(gone, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker looks for its parent once a second")
def test_a_killed_trainer_leaves_no_process_behind(write_file: Callable[[str], str]) -> None:
    file = write_file(
        "import os, time\ndef mine(completions):\n    if 'bad' in completions:\n        time.sleep(60)\n"
        "    return [float(os.getpid())]"
    )
    trainer = f"""
from posttrain.rewards.workers import WorkerReward
from posttrain.settings import RewardWorkerSettings
from tests.rewards.conftest import arguments
with WorkerReward("mine", {file!r}, RewardWorkerSettings(deadline=60.0)) as function:
    print(int(function(**arguments(["x"]))[0]), flush=True)
    function(**arguments(["bad"]))
"""
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert gone(pid)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_stop_request_ends_the_waiting(write_file: Callable[[str], str]) -> None:
    stop = False
    settings = RewardWorkerSettings(deadline=60.0)
    with WorkerReward("hangs", write_file(FAULTY), settings, stopping=lambda: stop) as function:
        assert function(**arguments(["good"])) == [0.5]
        stop = True
        with pytest.raises(Interrupted):
            function(**arguments(["bad"]))


def test_groups_stay_whole_over_several_processes(write_file: Callable[[str], str]) -> None:
    text = """
import os
import re
def mine(completions, prompt_id):
    assert len(prompt_id) == 4 and len(set(prompt_id)) == 2
    return [float(text) for text in completions]
"""
    names = ["a", "b", "c", "d"] * 2
    with WorkerReward("mine", write_file(text), RewardWorkerSettings(processes=2)) as function:
        texts = [str(number) for number in range(8)]
        assert function(**arguments(texts, prompt_id=names)) == [float(number) for number in range(8)]
        assert function(**arguments([])) == []


def test_shares_are_of_about_the_same_size() -> None:
    assert _shares([[0, 1], [2, 3], [4, 5], [6, 7]], 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert _shares([[0], [1], [2]], 2) == [[0, 1], [2]]
    assert _shares([[0, 1, 2]], 3) == [[0, 1, 2]]
    assert _shares([], 2) == []


def test_a_column_that_json_lacks_is_refused_by_name_where_it_is_asked_for(write_file: Callable[[str], str]) -> None:
    file = write_file(
        "def open_ended(completions, **columns):\n    return [1.0]\ndef named(completions, level):\n    return [1.0]"
    )
    columns = {"born": [date(2024, 1, 1)], "level": [1]}
    with WorkerReward("open_ended", file, PATIENT) as function:
        with pytest.raises(RewardError, match=r"column born cannot be sent .*JSON has no date"):
            function(**arguments(["x"], **columns))
        assert function(**arguments(["x"])) == [1.0]
    with WorkerReward("named", file, PATIENT) as function:
        assert function(**arguments(["x"], **columns)) == [1.0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nowhere\ndef mine(completions): ...", r"ModuleNotFoundError: No module named 'nowhere' \(mine.py:1\)"),
        ("def mine(completions): ...\ndel mine", "has no function mine once it is loaded"),
        ("import os\nos._exit(7)\ndef mine(completions): ...", "ended its process, with exit code 7"),
        ("import time\ntime.sleep(60)\ndef mine(completions): ...", "took longer than 2 s and was killed"),
        ("def mine(text): ...", r"reward mine\(text\) is not understood"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told_at_once(
    text: str, why: str, write_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "START_SECONDS", 2.0)
    with pytest.raises(RewardError, match=why), WorkerReward("mine", write_file(text), PATIENT):
        pass


def test_the_form_is_told(write_file: Callable[[str], str]) -> None:
    text = "def mine(solution_str, ground_truth):\n    return float(solution_str == ground_truth)"
    with WorkerReward("mine", write_file(text), PATIENT) as function:
        assert function.taken_for.startswith("reward mine (mine.py) has the form of verl: compute_score(")
        assert function(**arguments(["42", "41"], answer=["42", "42"])) == [1.0, 0.0]
