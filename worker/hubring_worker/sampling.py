"""A look at a handful of samples, so that a worker with other data is refused before it trains.

It finds another data set, version or preprocessing. It does not find one changed sample among
many: folders of files are sealed for that, in `sealed`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hubring_worker.canonical import hexdigest
from hubring_worker.seeding import kept_generators, mix, seed_generators

HANDFUL = 16
"""Samples that are read, twice each. A bound in samples, not in seconds: a slower machine must
come to the same digest.
"""
VARIES = "varies"
"""Of data whose samples differ from one reading to the next under the same seeds."""
_OPTIONS = ("worker_init_fn", "multiprocessing_context", "timeout")


class _Digests(Dataset[str]):
    """Digests in place of the samples, each read with the generators seeded by its index."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: Any) -> str:
        first, second = self._read(index), self._read(index)
        return first if first == second else VARIES

    def _read(self, index: Any) -> str:
        with kept_generators():
            seed_generators(mix(int(hexdigest(index), 16)))
            try:
                return hexdigest(self._one(index))
            except Exception as error:  # noqa: BLE001 - training will raise it, where it is due
                return f"raises {type(error).__name__}"

    def _one(self, index: Any) -> Any:
        whole = getattr(self._dataset, "__getitems__", None)
        return whole([index])[0] if whole is not None else self._dataset[index]


def content_digest(dataset: Any, indices: list[Any], options: Mapping[str, Any]) -> str:
    """The digest of the samples at `indices`; VARIES where one of them does.

    They are read where the loader would read them, so that a file which the data set opens at
    its first sample is not opened before the loader's processes are forked. The process's own
    generators are left alone.
    """
    digests = list(
        DataLoader(
            _Digests(dataset),
            sampler=indices,
            batch_size=None,
            num_workers=min(1, options.get("num_workers", 0)),
            generator=torch.Generator(),
            **{name: options[name] for name in _OPTIONS if name in options},
        )
    )
    return VARIES if VARIES in digests else hexdigest(digests)
