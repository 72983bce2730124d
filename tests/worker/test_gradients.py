import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD
from worker.local_hub import gradients, hubbed, weights
from worker.models import channels_last, grads, loss, mlp, names, params, same, twins


def test_the_users_gradient_view_is_the_slot():
    model, flat, _, _ = twins()
    loss(model).backward()
    views = grads(model)
    loss(model, 1).backward()
    assert all(a is b for a, b in zip(views, grads(model), strict=True))
    kept = gradients(flat, flat.present())
    model.zero_grad()
    loss(model, 2).backward()
    assert all(a is b for a, b in zip(views, grads(model), strict=True))
    assert not same(gradients(flat, flat.present()), kept)


def test_a_gradient_from_before_the_wrap_is_kept():
    torch.manual_seed(0)
    model = mlp()
    loss(model).backward()
    plain = copy.deepcopy(model)
    loss(plain).backward()
    _, hub = hubbed(model, SGD(model.parameters(), lr=0.1))
    assert same(gradients(hub.flat, hub.flat.present()), grads(plain))
    loss(plain, 1).backward()
    loss(model, 1).backward()
    assert same(gradients(hub.flat, hub.flat.present()), grads(plain))


def test_sparse_gradients_are_sent_dense_after_several_backwards():
    def looked_up(rows):
        return nn.Embedding(10, 3, sparse=True), torch.tensor(rows)

    torch.manual_seed(0)
    model, first = looked_up([1, 1, 4])
    plain = copy.deepcopy(model)
    optimizer, hub = hubbed(model, SGD(model.parameters(), lr=0.1))
    oracle = SGD(plain.parameters(), lr=0.1)
    for one, steps in ((model, optimizer), (plain, oracle)):
        one(first).sum().backward()
        one(torch.tensor([4, 9])).square().sum().backward()
        assert one.weight.grad.is_sparse
        steps.step()
    torch.testing.assert_close(model.weight, plain.weight)
    assert torch.equal(gradients(hub.flat, frozenset({0}))[0], plain.weight.grad.to_dense())


def test_a_parameter_unfrozen_after_the_wrap_is_hooked_at_the_next_check():
    torch.manual_seed(0)
    model = mlp()
    model[0].requires_grad_(requires_grad=False)
    _, hub = hubbed(model, SGD(model.parameters(), lr=0.1))
    loss(model).backward()
    assert "0.weight" not in names(model, hub.flat.present())
    model[0].requires_grad_()
    loss(model).backward()
    assert "0.weight" in names(model, hub.flat.present())
    hub.flat.check()
    model.zero_grad()
    loss(model).backward()
    first = model[0].weight.grad
    model.zero_grad()
    loss(model).backward()
    assert model[0].weight.grad is first


def test_a_view_that_torch_converts_in_place_is_made_anew():
    model, flat, _, plain = twins(channels_last)
    for one in (model, plain):
        loss(one).backward()
        one.to(memory_format=torch.contiguous_format)
        loss(one, 1).backward()
    flat.check()
    assert same(gradients(flat, flat.present()), grads(plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_accumulates_in_float32(dtype):
    torch.manual_seed(0)
    model = mlp().to(dtype)
    plain = copy.deepcopy(model)
    _, hub = hubbed(model, SGD(model.parameters(), lr=0.1))
    sums = [torch.zeros(p.shape) for p in params(plain)]
    for seed in range(4):
        loss(model, seed).backward()
        found = torch.autograd.grad(loss(plain, seed), params(plain))
        sums = [total + grad.float() for total, grad in zip(sums, found, strict=True)]
    assert {g.dtype for g in grads(model)} == {torch.float32}
    assert same(gradients(hub.flat, hub.flat.present()), sums)


def test_low_precision_weights_follow_their_masters():
    torch.manual_seed(0)
    model = mlp().bfloat16()
    loss(model).backward()  # its bfloat16 gradient is converted, not refused
    masters = [p.detach().float().requires_grad_() for p in params(model)]
    optimizer, hub = hubbed(model, SGD(model.parameters(), lr=1e-3))
    oracle = SGD(masters, lr=1e-3)
    for seed in range(4):
        loss(model, seed).backward()
        for master, grad in zip(masters, grads(model), strict=True):
            master.grad = grad.clone()
        optimizer.step()
        oracle.step()
    assert same(weights(hub.flat), masters)
    assert same(params(model), [m.bfloat16() for m in masters])


@pytest.mark.parametrize("make", [mlp, lambda: mlp().double()], ids=["float32", "float64"])
def test_divide_gradients_undoes_a_scale_as_a_grad_scaler_does(make):
    model, flat, _, plain = twins(make)
    for one in (model, plain):
        (loss(one) * 1000.0).backward()
    model[4].bias.grad = model[4].bias.grad.clone()
    flat.divide_gradients(torch.tensor(1000.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    scaler.scale(torch.ones(1))
    scaler.unscale_(SGD(plain.parameters(), lr=0.1))
    assert same(gradients(flat, flat.present()), grads(plain))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_nonfinite_gradient_is_named(value):
    model, flat, _, _ = twins()
    loss(model).backward()
    present = flat.present()
    assert flat.first_nonfinite(present) == ""
    for param in params(model)[3:]:
        param.grad.view(-1)[-1] = value
    assert flat.first_nonfinite(present) == "2.bias"
    absent = frozenset(range(3))
    assert flat.first_nonfinite(absent) == ""


def test_large_finite_gradients_are_finite():
    model, flat, _, _ = twins()
    loss(model).backward()
    for param in params(model):
        param.grad.fill_(3e38)
    assert flat.first_nonfinite(flat.present()) == ""
