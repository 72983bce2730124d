"""`run.evaluate`: a worker's part in a collective evaluation.

The coordinator says when all have come and who measures what; the totals are merged there.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from hubring_common.errors import UsageError
from hubring_common.messages import BatchTotals, EvaluationState, EvaluationTask, Total
from hubring_worker.buffers import Buffers
from hubring_worker.demands import check_batch_size, check_indexed
from hubring_worker.hub import HubClient
from hubring_worker.seeding import kept_generators
from hubring_worker.session import WorkerSession

Measure = Callable[[Any], Mapping[str, tuple[Any, Any]]]
"""A batch -> {name: (sum, count)}; the metric is the sum of all sums by the sum of all counts."""


class Evaluator:
    """Counts the script's evaluations: the i-th of every worker is the same one."""

    def __init__(self, session: WorkerSession, hub: HubClient, model: nn.Module) -> None:
        self._session, self._hub, self._model = session, hub, model
        self.buffers = Buffers(model)
        self._number = 0

    def evaluate(
        self, fn: Measure, dataset: Any, batch_size: int, **options: Any
    ) -> dict[str, float]:
        """The metrics over the whole `dataset`, the same on every worker.

        `options` are DataLoader's. Raises UsageError for data without a length and for a result
        of `fn` that is no totals.
        """
        data = _Data(dataset, batch_size, options)
        self._number += 1
        with _evaluating(self._model):
            return dict(self._take_part(fn, data))

    def _take_part(self, fn: Measure, data: "_Data") -> Mapping[str, float]:
        task = self._come(data)
        if task.state is EvaluationState.TASK:
            self._hub.pull()
        self.buffers.land(task.buffers)
        while task.state is EvaluationState.TASK:
            measured = _run(fn, data, task)
            task = self._session.evaluate(self._number, data.batches, data.settings, measured)
        return task.metrics

    def _come(self, data: "_Data") -> EvaluationTask:
        return self._session.evaluate(
            self._number, data.batches, data.settings, (), self.buffers.packed()
        )


class _Data:
    def __init__(self, dataset: Any, batch_size: int, options: Mapping[str, Any]) -> None:
        if isinstance(dataset, DataLoader):
            fact = "evaluate takes the data set; it was given a DataLoader"
            raise UsageError(fact, todo="Give loader.dataset, and batch_size and collate_fn here")
        check_indexed(dataset)
        check_batch_size(batch_size)
        self._dataset, self._batch_size, self._options = dataset, batch_size, options
        self._samples = len(dataset)
        self.batches = -(-self._samples // batch_size)

    @property
    def settings(self) -> dict[str, str]:
        """What all workers must agree on."""
        return {"evaluated samples": str(self._samples), "batch_size": str(self._batch_size)}

    def read(self, first: int, count: int) -> Iterator[tuple[int, Any]]:
        """Batch numbers and batches."""
        spans = [self._indices(batch) for batch in range(first, first + count)]
        loader = DataLoader(self._dataset, batch_sampler=spans, **self._options)
        return enumerate(loader, first)

    def _indices(self, batch: int) -> list[int]:
        start = batch * self._batch_size
        return list(range(start, min(start + self._batch_size, self._samples)))


def _run(fn: Measure, data: _Data, task: EvaluationTask) -> tuple[BatchTotals, ...]:
    return tuple(
        BatchTotals(number, _totals(fn(batch)))
        for number, batch in data.read(task.first, task.count)
    )


def _totals(found: Any) -> dict[str, Total]:
    """Raises UsageError where it is not {name: (sum, count)}."""
    try:
        return {
            str(name): Total(float(total), float(count)) for name, (total, count) in found.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        fact = f"the evaluated function returned {found!r:.200}: {error}"
        raise UsageError(fact, todo="Return {name: (sum, count)}, numbers both") from None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; then all as it was, the generators too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), kept_generators():
            yield
    finally:
        for module, training in modes:
            module.training = training
