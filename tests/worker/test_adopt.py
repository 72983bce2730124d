import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from worker.local_hub import hubbed

from hubring_common.errors import ModelMismatch, UsageError
from hubring_common.layout import ParamSpec
from hubring_worker.adopt import adopt


class Holder(nn.Module):
    """A module of the given parameters."""

    def __init__(self, **params):
        super().__init__()
        for name, param in params.items():
            self.register_parameter(name, param)


def refused(model, optimizer=None, kind=ModelMismatch):
    with pytest.raises(kind) as caught:
        adopt(model, optimizer or SGD(model.parameters(), lr=0.1))
    return str(caught.value)


def test_params_are_named_by_the_model_and_ordered_by_the_groups():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False)).double()
    groups = [{"params": model[1].parameters()}, {"params": model[0].parameters(), "lr": 0.2}]
    adopted = adopt(model, AdamW(groups))
    assert adopted.spec.optimizer == "AdamW"
    assert adopted.spec.params == (
        ParamSpec("1.weight", (1, 2), (2, 1), "float64", 0),
        ParamSpec("0.weight", (2, 3), (3, 1), "float64", 1),
        ParamSpec("0.bias", (2,), (1,), "float64", 1),
    )
    expected = [model[1].weight, model[0].weight, model[0].bias]
    assert all(a is b for a, b in zip(adopted.params, expected, strict=True))


def test_what_the_optimizer_does_not_hold_is_not_in_the_spec():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    adopted = adopt(model, SGD(model[1].parameters(), lr=0.1))
    assert [p.name for p in adopted.spec.params] == ["1.weight", "1.bias"]


def test_a_tied_parameter_is_one_under_its_first_name():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    adopted = adopt(model, SGD(model.parameters(), lr=0.1))
    assert [p.name for p in adopted.spec.params] == ["0.weight"]


@pytest.mark.parametrize(
    ("tensor", "stride"),
    [
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), (60, 1, 15, 3)),
        (torch.zeros(3, 2).t(), (1, 2)),
        (torch.zeros(1, 3).expand(4, 3), (3, 1)),
        (torch.zeros(6, 6)[::2, ::3], (2, 1)),
        (torch.zeros(4)[::4], (4,)),
        (torch.tensor(1.0), ()),
        (torch.zeros(0, 3), (3, 1)),
    ],
    ids=["channels_last", "transposed", "expanded", "strided", "one", "scalar", "empty"],
)
def test_strides_are_kept_where_the_elements_lie_without_gaps(tensor, stride):
    model = Holder(p=nn.Parameter(tensor))
    assert adopt(model, SGD(model.parameters(), lr=0.1)).spec.params[0].stride == stride


def test_a_foreign_parameter_is_refused():
    other = nn.Linear(5, 7)
    message = refused(nn.Linear(2, 2), SGD(other.parameters(), lr=0.1))
    assert "parameter 0 of group 0, a tensor of [7, 5], is not in the model" in message


def test_a_parameter_held_twice_is_refused():
    model = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = SGD([model.weight, model.weight], lr=0.1)
    assert "holds weight twice in group 0" in refused(model, optimizer)


def test_parameters_tied_by_data_are_refused_by_both_names():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight.data = model[0].weight.data
    message = refused(model)
    assert "0.weight" in message
    assert "1.weight" in message


def test_an_overlap_with_a_frozen_part_is_refused():
    whole = torch.zeros(10)
    model = Holder(held=nn.Parameter(whole[:6]), frozen=nn.Parameter(whole[5:]))
    assert "over the same memory" in refused(model, SGD([model.held], lr=0.1))


def test_an_overlap_is_found_past_a_neighbour_that_has_none():
    whole = torch.zeros(8, 3)
    columns = {"a": whole[:, 0], "b": whole[:4, 1], "c": whole[4:, 0]}
    message = refused(Holder(**{k: nn.Parameter(v) for k, v in columns.items()}))
    assert "c and a are two parameters" in message


def test_columns_of_one_matrix_do_not_overlap():
    whole = torch.zeros(8, 3)
    model = Holder(a=nn.Parameter(whole[:, 0]), b=nn.Parameter(whole[:, 1:]))
    assert len(adopt(model, SGD(model.parameters(), lr=0.1)).params) == 2


def test_a_lazy_parameter_is_refused_until_one_forward_ran():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    assert "0.weight has no shape yet. Run one forward first" in refused(model, optimizer)
    model(torch.zeros(2, 5))
    assert adopt(model, optimizer).spec.params[0].shape == (3, 5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_a_dtype_without_a_master_is_refused(dtype):
    message = refused(Holder(p=nn.Parameter(torch.zeros(2).to(dtype))))
    assert f"p is {str(dtype).removeprefix('torch.')}" in message


def test_integers_are_refused():
    model = Holder(p=nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False))
    assert "p is int8" in refused(model)


def test_a_sparse_parameter_is_refused():
    model = Holder(p=nn.Parameter(torch.eye(3).to_sparse()))
    assert "p is torch.sparse_coo" in refused(model)


def test_another_device_than_the_cpu_is_refused():
    assert "weight lies on meta" in refused(nn.Linear(2, 2, device="meta"))


def test_a_scheduler_built_before_the_wrap_is_refused():
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    message = refused(model, optimizer, UsageError)
    assert "Build the scheduler on what run.optimizer returns" in message


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.Adafactor, torch.optim.Muon])
def test_an_optimizer_that_is_not_elementwise_is_refused(make):
    model = nn.Linear(2, 2, bias=False)
    assert make.__name__ in refused(model, make(model.parameters()), UsageError)


def test_differentiable_is_refused():
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), lr=0.1, differentiable=True)
    assert "differentiable" in refused(model, optimizer, UsageError)


def test_a_second_wrap_is_refused():
    model = nn.Linear(2, 2)
    wrapped, _ = hubbed(model, SGD(model.parameters(), lr=0.1))
    assert "wrapped already" in refused(model, wrapped, UsageError)
