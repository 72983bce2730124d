"""The history's file beside the store: a line a point, appended; what a restart goes on with."""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hubring_coordinator.page.history import History, Point, from_row

log = logging.getLogger(__name__)

FILE = "history.jsonl"


class Record:
    """Bounded as the history is: once its resolution has halved, the file is written anew.

    The first line names the run, so that the next run's begins empty. A folder that cannot be
    written costs the record, not the run.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._file, self._run = folder / FILE, run
        self._written, self._stride = 0, 1
        self._is_broken = False

    def load(self, history: History) -> None:
        """Give `history` what the file has of this run."""
        history.restore(self._points())
        self._rewrite(history)

    def save(self, history: History) -> None:
        """Append the points that have come since the last time."""
        if self._is_broken:
            return
        if history.stride != self._stride:
            self._rewrite(history)
        elif new := history.points[self._written :]:
            self._append(new)
            self._written = len(history.points)

    def _points(self) -> Iterator[Point]:
        """The lines that can be read: a kill may have torn the last one."""
        try:
            head, *lines = self._file.read_text(errors="replace").splitlines() or [""]
        except OSError:
            return
        if _parsed(head) != {"run": self._run}:
            return
        for line in lines:
            try:
                yield from_row(json.loads(line))
            except (TypeError, ValueError):
                log.warning("%s has a torn line; it is left out", self._file)

    def _rewrite(self, history: History) -> None:
        draft = self._file.with_name(f".{FILE}.{os.getpid()}")
        head = json.dumps({"run": self._run}) + "\n"
        try:
            draft.write_text(head + _lines(history.points))
            draft.replace(self._file)
        except OSError as error:
            self._give_up(error)
        self._written, self._stride = len(history.points), history.stride

    def _append(self, points: Iterable[Point]) -> None:
        try:
            with self._file.open("a") as file:
                file.write(_lines(points))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._is_broken = True
        log.warning(
            "cannot write %s: %s; the page's history ends with this process", self._file, error
        )


def _lines(points: Iterable[Point]) -> str:
    return "".join(json.dumps(point.row()) + "\n" for point in points)


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None
