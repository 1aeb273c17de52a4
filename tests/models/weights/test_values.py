"""Numbers of a file that a model cannot have, and tensors under two names."""

import math

import pytest
import torch
from torch import nn

from compresskit.errors import CheckpointError
from compresskit.models.weights.fitting import load_weights


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def load(model, state, folder) -> None:
    torch.save(state, folder / "w.pt")
    load_weights(model, folder / "w.pt")


def changed(name: str, value: float, kind: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A state dict with this value at the second place of a tensor."""
    state = {key: tensor.clone() for key, tensor in net().state_dict().items()}
    state[name] = state[name].to(kind)
    state[name].view(-1)[1] = value
    return state


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "count"), [("0.weight", 12), ("1.running_var", 4)])
def test_what_is_not_finite_is_refused_by_name(name, count, value, tmp_path):
    with pytest.raises(CheckpointError, match=rf"w.pt: {name} \(1 of {count} numbers\) holds NaN or infinity; take a"):
        load(net(), changed(name, value), tmp_path)


@pytest.mark.parametrize(
    ("model", "state", "said"),
    [
        (net(), changed("0.weight", 1e300, torch.float64), r"0.weight \(1 of 12 numbers, for float32\)"),
        (net().half(), changed("0.bias", 7e4), r"0.bias \(1 of 4 numbers, for float16\)"),
        (net().bfloat16(), changed("0.bias", 3.4e38), r"0.bias \(1 of 4 numbers, for bfloat16\)"),
    ],
)
def test_what_is_beyond_the_models_type_is_refused_by_name(model, state, said, tmp_path):
    with pytest.raises(CheckpointError, match=rf"w.pt: {said} holds numbers too large for the model's type"):
        load(model, state, tmp_path)


def test_whole_numbers_stay_what_they_are(tmp_path):
    model, state = net(), net().state_dict()
    model[1].num_batches_tracked = torch.tensor(0, dtype=torch.int32)
    load(model, state | {"1.num_batches_tracked": torch.tensor(70_000)}, tmp_path)
    assert model[1].num_batches_tracked == 70_000
    with pytest.raises(CheckpointError, match=r"num_batches_tracked \(1 of 1 numbers, for int32\) holds numbers too"):
        load(model, state | {"1.num_batches_tracked": torch.tensor(2**40)}, tmp_path)


def test_several_tensors_are_named_at_once(tmp_path):
    state = {name: t * math.nan if t.is_floating_point() else t for name, t in net().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"0.weight \(12 of 12 .*1.bias .*1.running_mean .* and 1 more hold NaN"):
        load(net(), state, tmp_path)


def test_large_numbers_of_a_wider_type_are_taken_where_they_fit(tmp_path):
    model = net()
    load(model, changed("0.bias", 1e30, torch.float64), tmp_path)
    assert model[0].bias[1] == torch.tensor(1e30)


def test_infinity_where_the_model_has_it_itself_is_taken(tmp_path):
    model = net()
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    load(model, model.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"mask \(3 of 9 numbers\) holds NaN"):
        load(model, model.state_dict() | {"mask": torch.full((3, 3), -math.inf).tril(-1)}, tmp_path)


def one_parameter() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    made[1].weight = made[0].weight
    return made


def one_memory() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    made[1].weight.data = made[0].weight.data
    return made


@pytest.fixture(params=[one_parameter, one_memory])
def tied(request):
    return request.param()


def test_names_of_one_tensor_with_different_values_are_refused(tied, tmp_path):
    state = {"0.weight": torch.ones(3, 3), "1.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=r"0.weight and 1.weight are one tensor in the model, and differ"):
        load(tied, state, tmp_path)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_one_name_of_a_tensor_is_enough(tied, name, prefix, tmp_path):
    load(tied, {f"{prefix}{name}": torch.full((3, 3), 2.0)}, tmp_path)
    assert (tied[0].weight == 2).all()
    assert (tied[1].weight == 2).all()


def test_no_name_of_a_tensor_is_not_enough(tied, tmp_path):
    with pytest.raises(CheckpointError, match=r"missing: 0.weight, 1.weight"):
        load(tied, {"more": torch.ones(1)}, tmp_path)


def test_empty_tensors_are_not_tied(tmp_path):
    model = nn.Module()
    model.register_buffer("a", torch.zeros(0))
    model.register_buffer("b", torch.zeros(0))
    with pytest.raises(CheckpointError, match="missing: b"):
        load(model, {"a": torch.zeros(0)}, tmp_path)


def test_equal_values_of_two_types_are_equal(tied, tmp_path):
    load(tied, {"0.weight": torch.ones(3, 3).half(), "1.weight": torch.ones(3, 3)}, tmp_path)
    assert (tied[0].weight == 1).all()


def test_where_numbers_need_not_be_finite_nan_is_one_value(tied, tmp_path):
    torch.save({"0.weight": torch.full((3, 3), math.nan), "1.weight": torch.full((3, 3), math.nan)}, tmp_path / "w.pt")
    load_weights(tied, tmp_path / "w.pt", finite=False)
    assert tied[1].weight.isnan().all()
