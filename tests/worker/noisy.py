"""A data set and a collate function that draw from all three global generators."""

import random

import numpy as np
import torch
from torch.utils.data import Dataset


def noise() -> torch.Tensor:
    numpy = np.random.rand()  # noqa: NPY002 - the global one is the matter
    return torch.tensor([random.random(), numpy, torch.rand(()).item()])


class Noisy(Dataset[torch.Tensor]):
    """Sample i is (i, three random numbers). `poison` raises when it is read."""

    def __init__(self, samples: int, poison: int | None = None) -> None:
        self.samples, self.poison = samples, poison

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.poison:
            raise ValueError(f"sample {index} cannot be read")
        return torch.cat([torch.tensor([float(index)]), noise()])


def collate_with_noise(samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([*samples, torch.cat([torch.tensor([-1.0]), noise()])])
