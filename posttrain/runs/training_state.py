"""Optimizer state to and from named tensors and JSON, bit for bit and without pickle.

Floor 1: knows torch's optimizers, not which model they train. Parameters are stored by name, so that a changed order
or set of parameters is refused instead of mixed up.
"""

from collections.abc import Mapping
from typing import Any

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
