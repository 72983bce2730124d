"""Every way in which user code comes to gradients sends what plain torch computes."""

from functools import partial

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint
from worker.local_hub import gradients
from worker.models import batch, grads, loss, params, same, twins


def accumulated(model):
    for seed in range(3):
        loss(model, seed).backward()


def dropped_between(model):
    loss(model, 1).backward()
    model.zero_grad(set_to_none=True)
    loss(model).backward()


def zeroed_between(model):
    loss(model, 1).backward()
    model.zero_grad(set_to_none=False)
    loss(model).backward()


def clipped_between(model):
    loss(model, 1).backward()
    assert clip_grad_norm_(model.parameters(), 1e-3) > 0
    loss(model).backward()
    clip_grad_norm_(model.parameters(), 1e-3)


def replaced_between(model):
    loss(model, 1).backward()
    for param in model.parameters():
        param.grad = param.grad * 0.5
    loss(model).backward()


def replaced_at_the_end(model):
    loss(model, 1).backward()
    for param in model.parameters():
        param.grad = param.grad * 0.5


def changed_through_data(model):
    loss(model).backward()
    for param in model.parameters():
        param.grad.data.mul_(0.5)
        param.grad.numpy()[...] += 1


def retained(model):
    kept = loss(model)
    kept.backward(retain_graph=True)
    kept.backward()


def penalized(model):
    first = torch.autograd.grad(loss(model), params(model), create_graph=True)
    (loss(model, 1) + sum(g.square().sum() for g in first)).backward()


def differentiated_twice(model):
    loss(model).backward(create_graph=True)
    kept = grads(model)
    assert all(g.requires_grad for g in kept)
    sum(g.square().sum() for g in kept).backward()
    loss(model, 1).backward()


def first_plain_then_with_graph(model):
    loss(model).backward()
    loss(model, 1).backward(create_graph=True)


def checkpointed(model, *, reentrant):
    x = batch().requires_grad_()
    for layer in model:
        x = checkpoint(layer, x, use_reentrant=reentrant)
    x.square().mean().backward()


def shared_by_checkpoints(model):
    x = batch().requires_grad_()
    for _ in range(3):
        wide = checkpoint(model[0], x, use_reentrant=True)
        x = checkpoint(lambda h: h[:, :4].contiguous(), wide, use_reentrant=True)
    x.square().mean().backward()


def functional(model):
    values = dict(model.named_parameters())
    torch.func.functional_call(model, values, batch()).square().mean().backward()


def partly_unused(model):
    loss(model, 1).backward()
    model.zero_grad()
    model[2](model[0](batch())).square().mean().backward()


def made_by_hand(model):
    for param in params(model)[:2]:
        param.grad = torch.full_like(param, 0.25)


def by_autograd_grad_alone(model):
    found = torch.autograd.grad(loss(model), params(model))
    for param, grad in zip(params(model), found, strict=True):
        param.grad = grad


def dropped_by_a_later_hook(model):
    handle = model[0].bias.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    loss(model).backward()
    handle.remove()


def tripled(param):
    param.grad.mul_(3)


def scaled_by_hooks(model):
    before = model[0].weight.register_hook(lambda g: g * 2)
    after = model[2].weight.register_post_accumulate_grad_hook(tripled)
    loss(model).backward()
    loss(model, 1).backward()
    before.remove()
    after.remove()


WAYS = [
    accumulated,
    dropped_between,
    zeroed_between,
    clipped_between,
    replaced_between,
    replaced_at_the_end,
    changed_through_data,
    retained,
    penalized,
    differentiated_twice,
    first_plain_then_with_graph,
    pytest.param(partial(checkpointed, reentrant=True), id="reentrant"),
    pytest.param(partial(checkpointed, reentrant=False), id="not reentrant"),
    shared_by_checkpoints,
    functional,
    partly_unused,
    made_by_hand,
    by_autograd_grad_alone,
    dropped_by_a_later_hook,
    scaled_by_hooks,
]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_what_is_sent_is_what_plain_torch_computes(way):
    model, flat, _, plain = twins()
    for one in (model, plain):
        way(one)
    expected = grads(plain)
    present = flat.present()
    assert present == {i for i, g in enumerate(expected) if g is not None}
    assert same(gradients(flat, present), expected)
    assert same(grads(model), expected)
