"""The run's scalars as TensorBoard's event files, by its own writer. Needs no torch.

The package `tensorboard` is an extra, and is loaded only where a folder is named for it.
"""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubring_common.errors import UsageError
from hubring_common.messages import Status
from hubring_common.report import totals
from hubring_coordinator.page.history import sample

log = logging.getLogger(__name__)


class Scalars:
    """A disk that fails later on costs the scalars, not the run.

    Raises UsageError where `tensorboard` is not installed or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            fact = f"--tensorboard {folder}: tensorboard cannot be loaded ({error})"
            raise UsageError(fact, todo="pip install 'hubring[tensorboard]'") from None
        try:
            self._writer: Any = EventFileWriter(str(folder))
        except OSError as error:
            fact = f"cannot write event files below {folder}: {error}"
            raise UsageError(fact, todo="give --tensorboard another folder") from None
        self._step = -1
        self._logged: dict[str, float] = {}
        self._evaluations: set[int] = set()
        self._is_broken = False

    def write(self, status: Status) -> None:
        """What is new since the last time, by the cluster's step."""
        if self._is_broken:
            return
        try:
            self._write(status)
        except OSError as error:
            self._is_broken = True
            log.warning("cannot write event files: %s; there are no more of this process", error)

    def _write(self, status: Status) -> None:
        point = sample(status).point
        if point.steps > self._step and point.steps:
            self._step = point.steps
            stale = totals(status)["staleness_mean"]
            shown = {"loss": point.loss, "examples_per_second": point.rate}
            self._put(point.steps, {**shown, "staleness": stale, "workers": point.workers})
        self._write_logged(status, point.steps)
        self._write_evaluations(status)

    def close(self) -> None:
        if not self._is_broken:
            self._writer.close()

    def _write_logged(self, status: Status, step: int) -> None:
        new = {k: v for k, v in status.metrics.items() if self._logged.get(k) != v}
        self._logged.update(new)
        self._put(step, {f"logged/{name}": value for name, value in new.items()})

    def _write_evaluations(self, status: Status) -> None:
        for each in status.evaluations:
            if each.seconds and each.number not in self._evaluations:
                self._evaluations.add(each.number)
                self._put(each.steps, {f"evaluation/{k}": v for k, v in each.metrics.items()})

    def _put(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        known = {name: value for name, value in values.items() if math.isfinite(value)}
        if known:
            shown = [Summary.Value(tag=k, simple_value=v) for k, v in known.items()]
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=shown))
            self._writer.add_event(event)
            self._writer.flush()
