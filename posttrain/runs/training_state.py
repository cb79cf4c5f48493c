"""Optimizer and random-generator state to and from named tensors and JSON, bit for bit and without pickle.

Floor 1: knows torch's optimizers, not which model they train. Parameters are stored by name, so that a changed order
or set of parameters is refused instead of mixed up.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.optim import Optimizer

from posttrain.errors import CheckpointError


def optimizer_tensors(
    optimizer: Optimizer, names: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return an optimizer's tensors, keyed `parameter/moment`, and its groups as JSON.

    `names` maps each parameter's name to the parameter, as `dict(model.named_parameters())` does.
    """
    by_parameter = {id(parameter): name for name, parameter in names.items()}
    tensors: dict[str, Tensor] = {}
    groups = []
    for group in optimizer.param_groups:
        members = {by_parameter[id(parameter)]: parameter for parameter in group["params"]}
        for name, parameter in members.items():
            for moment, value in optimizer.state.get(parameter, {}).items():
                assert isinstance(value, Tensor), f"{type(optimizer).__name__} keeps {moment} as {type(value).__name__}"
                tensors[f"{name}/{moment}"] = value
        groups.append({key: value for key, value in group.items() if key != "params"} | {"params": list(members)})
    return tensors, groups


def restore_optimizer(
    optimizer: Optimizer, names: Mapping[str, Tensor], tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put back what `optimizer_tensors` returned; raises CheckpointError, changing nothing, where it does not fit.

    Moments keep their dtype: `load_state_dict` would cast them to that of the parameter.
    """
    by_parameter = {id(parameter): name for name, parameter in names.items()}
    current = [[by_parameter[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    if current != [group["params"] for group in groups]:
        raise CheckpointError(
            "the checkpoint's optimizer trains other parameters than this one",
            fix="restore the settings that the run began with, or start over with --overwrite",
        )
    restored: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        parameter = names[name]
        if value.dim() and value.shape != parameter.shape:
            raise CheckpointError(
                f"optimizer state {key} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}",
                fix="restore the model settings that the run began with, or start over with --overwrite",
            )
        restored.setdefault(parameter, {})[moment] = value
    optimizer.state.clear()
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        for key, value in saved.items():
            if key != "params":
                group[key] = tuple(value) if isinstance(value, list) else value
        on_device = group.get("capturable") or group.get("fused")
        for parameter in group["params"]:
            optimizer.state[parameter].update(
                {
                    moment: value.clone().to(parameter.device if moment != "step" or on_device else "cpu")
                    for moment, value in restored.get(parameter, {}).items()
                }
            )


def rng_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of the global generators: torch's (CPU and each device) as tensors, python's and numpy's."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = numpy.random.get_state()
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [algorithm, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def restore_rng(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned; devices that this machine lacks are skipped."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    algorithm, keys, *rest = state["numpy"]
    numpy.random.set_state((algorithm, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if (saved := tensors.get(f"cuda.{index}")) is not None:
            torch.cuda.set_rng_state(saved, index)
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])
