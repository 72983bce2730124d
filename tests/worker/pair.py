"""A small model and its optimizer twice, on a hub and plain, to train and compare."""

import copy

import torch
from torch import nn
from torch.optim import SGD, AdamW
from worker.local_hub import hubbed

from hubring_common.optimizers import hypers_of


def net():
    return nn.Sequential(
        nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2)
    )


def momentum(params):
    return SGD(params, lr=0.1, momentum=0.9)


def adamw(params):
    return AdamW(params, lr=0.01)


class Pair:
    """The same model, batch and optimizer twice: on a hub, and plain."""

    def __init__(self, make=momentum):
        torch.manual_seed(0)
        self.model = net()
        self.plain = copy.deepcopy(self.model)
        self.optimizer, self.hub = hubbed(self.model, make(self.model.parameters()))
        self.oracle = make(self.plain.parameters())

    def __iter__(self):
        return iter([(self.model, self.optimizer), (self.plain, self.oracle)])

    def check(self):
        """Weights, hyperparameters and gradients are bitwise those of plain torch."""
        assert same(self.model, self.plain)
        assert hypers_of(self.optimizer) == hypers_of(self.oracle)
        pairs = zip(self.model.parameters(), self.plain.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs if b.grad is not None)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def loss(model, seed=0):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    return model(x).square().mean()


def train(model, optimizer, steps=3, **zeroing):
    for seed in range(steps):
        optimizer.zero_grad(**zeroing)
        loss(model, seed).backward()
        optimizer.step()
