"""A small problem that plain torch, and torch behind a framework, must solve alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from whole import cluster

BATCHES = 12


def data() -> TensorDataset:
    torch.manual_seed(1)
    x = torch.randn(8 * BATCHES, 5)
    return TensorDataset(x, x.sum(1, keepdim=True))


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


class Alone:
    """What a script without hubring has in the place of a run."""

    loader = staticmethod(DataLoader)
    finish = staticmethod(lambda: None)

    @staticmethod
    def optimizer(optimizer, _model):
        return optimizer


@contextmanager
def one_worker(folder: Path) -> Iterator[object]:
    with cluster(folder) as whole:
        yield whole.join()


def both(folder: Path, train: Callable[[object], nn.Module]) -> tuple[list, list]:
    """The weights that `train(run)` leaves: without hubring, and as one worker of a cluster."""
    plain = train(Alone())
    with one_worker(folder) as run:
        ours = train(run)
        run.finish()
        return [list(model.state_dict().values()) for model in (plain, ours)]
