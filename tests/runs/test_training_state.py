import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from posttrain.errors import CheckpointError
from posttrain.runs.tensor_files import load_tensors, tensor_chunks
from posttrain.runs.training_state import optimizer_tensors, restore_optimizer


def trained(steps: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtype)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest}], betas=(0.9, 0.95))
    train(model, optimizer, range(steps))
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(batch.to(model[0].weight.dtype)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path, dtype: torch.dtype) -> None:
    model, optimizer = trained(3, dtype)
    tensors, groups = optimizer_tensors(optimizer, dict(model.named_parameters()))
    (tmp_path / "optimizer.safetensors").write_bytes(b"".join(tensor_chunks(tensors)))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    groups = json.loads(json.dumps(groups))
    train(model, optimizer, range(3, 6))

    again, fresh = trained(0, dtype)
    again.load_state_dict(weights)
    loaded = load_tensors(tmp_path / "optimizer.safetensors")
    restore_optimizer(fresh, dict(again.named_parameters()), loaded, groups)
    train(again, fresh, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert fresh.param_groups[0]["betas"] == (0.9, 0.95)


def test_moments_keep_a_dtype_that_differs_from_the_parameter() -> None:
    model, optimizer = trained(1, torch.bfloat16)
    names = dict(model.named_parameters())
    tensors, groups = optimizer_tensors(optimizer, names)
    restore_optimizer(optimizer, names, {key: value.float() for key, value in tensors.items()}, groups)
    assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.float32


def test_another_set_of_parameters_or_shape_is_refused_untouched() -> None:
    model, optimizer = trained(1)
    names = dict(model.named_parameters())
    tensors, groups = optimizer_tensors(optimizer, names)
    before = optimizer.state[model[0].weight]["exp_avg"]
    with pytest.raises(CheckpointError, match="other parameters"):
        restore_optimizer(optimizer, names, tensors, groups[:1])
    wrong = tensors | {"1.weight/exp_avg": torch.zeros(7, 7)}
    with pytest.raises(CheckpointError, match=r"1\.weight/exp_avg has shape"):
        restore_optimizer(optimizer, names, wrong, groups)
    assert optimizer.state[model[0].weight]["exp_avg"] is before


def test_files_are_safetensors(tmp_path) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "transposed": base.t(),
        "half": base.bfloat16(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "mask": base > 3,
        "bytes": torch.arange(3, dtype=torch.uint8),
        "parameter": nn.Parameter(base.clone()),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(tensor_chunks(tensors)))
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
    for name, value in load_tensors(path).items():
        assert value.dtype == tensors[name].dtype
        assert torch.equal(value, tensors[name].detach())
    (tmp_path / "none.safetensors").write_bytes(b"".join(tensor_chunks({})))
    assert load_tensors(tmp_path / "none.safetensors") == {}
