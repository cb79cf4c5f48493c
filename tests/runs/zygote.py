"""A process that has torch loaded and forks a tiny training for each line it reads: `{"path", ...options}`.

Run as a program by test_interruption.py. The options plant what the tests need; without any, the training is plain.
`signal` is sent `after` so many seconds.
"""

import json
import os
import signal
import sys
import time
import traceback

import torch
import torch._dynamo  # every optimizer imports it when it is made: once here instead of once in each child
from torch import nn

from posttrain.errors import PosttrainError
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.durable import create_file
from posttrain.runs.signals import stop_on_signals
from posttrain.runs.tensor_files import tensor_chunks
from posttrain.runs.training_state import optimizer_tensors, restore_optimizer
from posttrain.seeds import derive_seed
from posttrain.settings import SftSettings

STEPS = 12


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def train(path: str, die_in: int = 0, hang_in: int = 0, forget: str = "") -> None:
    """Train with dropout of a seed derived for each step; `forget` leaves a part of the state out of the resume."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    names = dict(model.named_parameters())
    settings = SftSettings(save_steps=3)
    with stop_on_signals(), StageRun.open(path, settings=settings, fingerprint="f", display=NoDisplay()) as run:
        if run.finished:
            return
        if run.checkpoint:
            model.load_state_dict(run.checkpoint.tensors("model"))
            moments = run.checkpoint.tensors("optimizer")
            if forget == "exp_avg":
                moments = {key: value * (0 if key.endswith("exp_avg") else 1) for key, value in moments.items()}
            restore_optimizer(optimizer, names, moments, run.checkpoint.state["optimizer"])

        def trainer_state():
            tensors, groups = optimizer_tensors(optimizer, names)
            return {"model": model.state_dict(), "optimizer": tensors}, {"optimizer": groups}

        say("training", os.getpid())
        for step in run.steps(STEPS):
            with run.phase("generate"):
                batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
                time.sleep(0.003)
            with run.phase("update"):
                optimizer.zero_grad()
                torch.manual_seed(0 if forget == "seed" else derive_seed(0, "dropout", step))
                loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
                loss.backward()
                if step == die_in:
                    os.kill(os.getpid(), signal.SIGKILL)
                optimizer.step()
            run.log(step, {"loss": loss.item()}, rollouts=[{"step": step, "loss": loss.item()}])
            while step == hang_in:  # a step that never ends
                if run.stop_requested:
                    say("stop seen")
                    hang_in = -1
                time.sleep(0.001)
            while hang_in == -1:
                time.sleep(0.001)
            run.save(step, trainer_state)
        run.publish_artifact(
            lambda place: create_file(place / "model.safetensors", tensor_chunks(model.state_dict())) and None
        )
        run.finish({"loss": 0.0})


def main() -> None:
    torch.set_num_threads(1)
    say("ready")
    for line in sys.stdin:
        options = json.loads(line)
        number, delay = options.pop("signal", 0), options.pop("after", 0.0)
        child = os.fork()
        if child == 0:
            code = 0
            try:
                train(**options)
            except PosttrainError as error:
                say("error", str(error).replace("\n", " "))
                code = error.exit_code
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
        if number:
            time.sleep(delay)
            os.kill(child, number)  # not yet waited for, so the number is still this child's
        say("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
