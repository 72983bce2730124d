"""Randomness that belongs to a batch, not to the process that happens to read it.

A batch's seed sets Python's, numpy's and torch's CPU generator where its samples are read, so
that whoever trains the batch augments it alike. A generator that the data set made for itself
(`numpy.random.default_rng()` kept as an attribute, say) is out of reach. Which batch is read
when is told in `leasing`.
"""

import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset

from hubring_common.ids import BatchKey


def mix(*numbers: int) -> int:
    """A seed of 64 bits from integers of any size. Equal on every machine, unlike `hash`."""
    return xxhash.xxh3_64_intdigest(",".join(map(str, numbers)).encode())


def seed_generators(seed: int) -> None:
    """Set the three global generators from a seed of 64 bits.

    torch's and numpy's are the same Mersenne twister and take 32 bits of it: each gets a half
    of its own, or both would draw the same numbers. `torch.manual_seed` would also reset the
    accelerators' generators, which augmentation on the CPU has no business with.
    """
    random.seed(seed)
    np.random.seed(seed >> 32)  # noqa: NPY002 - the global one is what user code draws from
    torch.default_generator.manual_seed(seed & 0xFFFF_FFFF)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leaves the three global generators as they were. About 0.1 ms, most of it numpy's."""
    python = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    cpu = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.default_generator.set_state(cpu)


class Keyed(list[int]):
    """The indices of one batch. User code sees a list; key and seed cross fork and spawn."""

    __slots__ = ("key", "seed")

    def __init__(self, indices: Iterable[int], key: BatchKey, seed: int) -> None:
        super().__init__(indices)
        self.key, self.seed = key, seed


class SeededDataset(Dataset[Any]):
    """The user's map-style data set; reading a Keyed batch seeds the generators first.

    Attributes are read from and written to the user's data set. Names with two underscores
    are not forwarded: copying and pickling must see this object, not the one inside.
    """

    _dataset: Any

    def __init__(self, dataset: Any) -> None:
        vars(self)["_dataset"] = dataset

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if isinstance(indices, Keyed):
            seed_generators(indices.seed)
        whole = getattr(self._dataset, "__getitems__", None)
        if whole is not None:
            return cast("list[Any]", whole(indices))
        return [self._dataset[index] for index in indices]

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index]

    def __len__(self) -> int:
        return len(cast("Sized", self._dataset))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":  # the latter: while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)
