"""Models that a layout could get wrong, each with a plain copy to compare with."""

import copy

import torch
from torch import nn
from torch.optim import SGD
from worker.local_hub import hubbed


class Shapes(nn.Module):
    """The shapes that a layout could get wrong, in one module."""

    def __init__(self):
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.transposed = nn.Parameter(torch.randn(6, 4).t())
        self.expanded = nn.Parameter(torch.randn(1, 6).expand(4, 6))
        self.columns = nn.Parameter(torch.randn(4, 12)[:, ::2])

    def forward(self, x):
        mixed = self.transposed * self.expanded + self.columns.sin()
        return self.scalar * (x @ mixed) + self.empty.sum()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(4, 8, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.cells(x.reshape(2, -1, 4))[0]


def mlp():
    return nn.Sequential(
        nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2)
    )


def channels_last():
    images = nn.Unflatten(1, (4, 1, 1))
    net = nn.Sequential(images, nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return net.to(memory_format=torch.channels_last)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def weight_normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))


MODELS = [mlp, channels_last, tied, weight_normed, Recurrent, Shapes, lambda: mlp().double()]
IDS = ["mlp", "channels_last", "tied", "weight_norm", "lstm", "shapes", "float64"]


def twins(make=mlp, **settings):
    """(model, its FlatModel, its hub's wrapped optimizer, a plain copy)."""
    torch.manual_seed(0)
    model = make()
    plain = copy.deepcopy(model)
    optimizer, hub = hubbed(model, SGD(model.parameters(), lr=0.1, **settings))
    return model, hub.flat, optimizer, plain


def batch(seed=0, dtype=torch.float32):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss(model, seed=0):
    return model(batch(seed, next(model.parameters()).dtype)).square().mean()


def same(ours, theirs):
    """Bitwise, with None equal to None."""
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def params(model):
    return list(model.parameters())


def grads(model):
    return [p.grad for p in model.parameters()]


def names(model, present):
    return {name for i, (name, _) in enumerate(model.named_parameters()) if i in present}
