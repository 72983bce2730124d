"""The catalogue of optimizers that a shard can step, and the numbers that a push carries."""

import inspect

import pytest
import torch
from torch import optim

from hubring_common.errors import UsageError
from hubring_common.optimizers import (
    ELEMENTWISE,
    FUSED,
    NEEDED_SLOTS,
    build,
    check_hypers,
    hypers_of,
    kind_of,
)
from hubring_common.wire import pack_hypers, unpack_hypers

HOW_NOT_WHAT = {"params", "foreach", "fused", "capturable", "differentiable"}


def a_parameter():
    return torch.nn.Parameter(torch.ones(4, 4))


def options(kind, **hypers):
    """An optimizer of `kind` over one parameter."""
    return ELEMENTWISE[kind]([a_parameter()], **hypers)


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_every_elementwise_class_is_known_by_its_name(kind):
    assert kind_of(options(kind)) == kind


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_exactly_the_mathematics_travels(kind):
    signature = inspect.signature(ELEMENTWISE[kind]).parameters.keys()
    inherited = {"decoupled_weight_decay"} if kind == "AdamW" else set()
    (hypers,) = hypers_of(options(kind))
    assert hypers.keys() == (signature - HOW_NOT_WHAT) | inherited


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_hypers_survive_the_wire_and_fit_the_other_side(kind):
    (hypers,) = hypers_of(options(kind))
    arrived = unpack_hypers(pack_hypers(hypers))
    assert arrived == hypers
    check_hypers(build(kind), arrived)


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_fused_is_what_torch_can_fuse_on_a_cpu(kind):
    weights = a_parameter()
    weights.grad = torch.ones(4, 4)
    if kind in FUSED:
        ELEMENTWISE[kind]([weights], fused=True).step()
        assert (weights != 1).all()
    else:
        with pytest.raises(TypeError, match="fused"):
            ELEMENTWISE[kind]([weights], fused=True)


@pytest.mark.parametrize(
    ("kind", "name", "slot"),
    [(kind, name, slot) for kind, slots in NEEDED_SLOTS.items() for name, slot in slots.items()],
)
def test_torch_makes_a_needed_slot_at_the_first_step_only(kind, name, slot):
    optimizer = options(kind)
    weights = optimizer.param_groups[0]["params"][0]
    weights.grad = torch.ones(4, 4)
    optimizer.step()
    optimizer.param_groups[0][name] = 0.9 if name == "momentum" else True
    with pytest.raises(KeyError, match=slot):
        optimizer.step()


def test_each_group_has_its_own_numbers_and_lists_become_tuples():
    first, second = a_parameter(), a_parameter()
    groups = [{"params": [first], "lr": 0.5}, {"params": [second], "betas": [0.8, 0.95]}]
    one, two = hypers_of(optim.AdamW(groups, weight_decay=0))
    assert (one["lr"], one["betas"]) == (0.5, (0.9, 0.999))
    assert (two["lr"], two["betas"]) == (0.001, (0.8, 0.95))
    assert type(two["betas"]) is tuple
    assert (two["weight_decay"], two["amsgrad"], two["decoupled_weight_decay"]) == (0, False, True)


def test_tensors_travel_as_floats():
    lr, beta = torch.tensor(0.25), torch.tensor(0.5)
    (hypers,) = hypers_of(optim.Adam([a_parameter()], lr=lr, betas=(beta, beta)))
    assert (hypers["lr"], hypers["betas"]) == (0.25, (0.5, 0.5))
    assert type(hypers["lr"]) is float


def test_what_schedulers_and_loss_scaling_leave_behind_stays_here():
    optimizer = options("SGD", lr=0.1, momentum=0.9)
    before = hypers_of(optimizer)[0].keys()
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=10)
    optimizer.found_inf = optimizer.grad_scale = torch.tensor(1.0)
    (hypers,) = hypers_of(optimizer)
    assert hypers.keys() == before
    assert hypers["lr"] == scheduler.get_last_lr()[0]
    assert hypers["momentum"] == 0.95


def test_adagrads_first_sum_is_of_the_whole_optimizer_as_in_torch():
    group = {"params": [a_parameter()], "initial_accumulator_value": 7.0}
    optimizer = optim.Adagrad([group], initial_accumulator_value=0.5)
    assert (optimizer.state[group["params"][0]]["sum"] == 0.5).all()
    assert hypers_of(optimizer)[0]["initial_accumulator_value"] == 0.5


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: optim.LBFGS([p]), "LBFGS calls its closure several times"),
        (lambda p: optim.Muon([p]), "Muon orthogonalizes whole matrices"),
        (lambda p: optim.Adafactor([p]), "Adafactor keeps sums over rows and columns"),
        (lambda p: optim.SparseAdam([p]), "SparseAdam steps only the rows of sparse gradients"),
    ],
)
def test_other_torch_optimizers_are_refused_with_the_reason(make, why):
    with pytest.raises(UsageError, match=why) as caught:
        kind_of(make(a_parameter()))
    assert all(kind in caught.value.todo for kind in ELEMENTWISE)


def test_a_subclass_is_refused_even_under_the_same_name():
    mine = type("SGD", (optim.SGD,), {})
    with pytest.raises(UsageError, match="a class of its own over SGD"):
        kind_of(mine([a_parameter()]))


def test_a_foreign_optimizer_is_refused_by_name():
    class Lion(optim.Optimizer):
        pass

    with pytest.raises(UsageError, match="Lion is not one of torch's elementwise"):
        kind_of(Lion([a_parameter()], {}))


@pytest.mark.parametrize("question", [kind_of, hypers_of])
def test_differentiable_is_refused_by_name(question):
    optimizer = options("SGD")
    optimizer.add_param_group({"params": [a_parameter()], "differentiable": True})
    with pytest.raises(UsageError, match="param group 1 of SGD has differentiable=True"):
        question(optimizer)


@pytest.mark.parametrize("value", [None, "fast", torch.ones(2), (0.9, None)])
def test_a_value_that_is_no_number_is_refused_by_name(value):
    optimizer = options("SGD")
    optimizer.param_groups[0]["weight_decay"] = value
    with pytest.raises(UsageError, match=r"param group 0 has weight_decay=.* no number"):
        hypers_of(optimizer)


def test_hypers_of_another_class_or_torch_are_refused():
    hypers = dict(hypers_of(options("Adam"))[0])
    adam = build("Adam")
    with pytest.raises(UsageError, match=r"Adam has no gamma here but .* gamma as one number"):
        check_hypers(adam, hypers | {"gamma": 1.0})
    with pytest.raises(UsageError, match=r"betas as 2 numbers here but .* betas as one number"):
        check_hypers(adam, hypers | {"betas": 0.9})
    del hypers["eps"]
    with pytest.raises(UsageError, match="eps as one number here but the worker sent no eps"):
        check_hypers(adam, hypers)


def test_no_optimizer_is_built_of_an_unknown_kind():
    with pytest.raises(UsageError, match="no optimizer is named Muon"):
        build("Muon")
