"""One thread a shard, so that a step's pushes travel side by side.

Daemon threads and no executor: the last pull may come while the interpreter is already closing.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Lanes:
    """`count` lanes; the first is the caller's own thread."""

    def __init__(self, count: int) -> None:
        self._queues: list[SimpleQueue[Callable[[], None] | None]] = []
        for lane in range(1, count):
            queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
            self._queues.append(queue)
            threading.Thread(target=_work, args=(queue,), name=f"lane-{lane}", daemon=True).start()

    def map(self, calls: list[Callable[[], T]]) -> list[T]:
        """The results in order. Waits for every call, then raises the first error, if any."""
        if not calls:
            return []
        futures: list[Future[T]] = [Future() for _ in calls]
        for queue, call, future in zip(self._queues, calls[1:], futures[1:], strict=True):
            queue.put(_settling(call, future))
        _settling(calls[0], futures[0])()
        errors = [future.exception() for future in futures]
        for error in filter(None, errors):
            raise error
        return [future.result() for future in futures]

    def close(self) -> None:
        for queue in self._queues:
            queue.put(None)


def _settling(call: Callable[[], T], future: Future[T]) -> Callable[[], None]:
    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again by `map`
            future.set_exception(error)

    return run


def _work(queue: "SimpleQueue[Callable[[], Any] | None]") -> None:
    while (job := queue.get()) is not None:
        job()
