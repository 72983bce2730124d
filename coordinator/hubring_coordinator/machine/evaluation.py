"""Collective evaluation: every live worker comes, nobody pushes, spans of batches are shared out,
and all get one result.

Totals are kept by batch and summed exactly (Shewchuk, 1997: `math.fsum`), so that the result does
not depend on who measured what.
"""

import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hubring_common import plain
from hubring_common.errors import InvalidMessage, UsageError
from hubring_common.ids import Session
from hubring_common.messages import (
    BatchTotals,
    EvaluationPart,
    EvaluationStatus,
    Total,
)
from hubring_coordinator.machine import pooling
from hubring_coordinator.machine.batches import Batches

Touch = Callable[[str, object], None]


@dataclass(slots=True)
class EvaluationFacts:
    """What of an evaluation is durable, but for the totals while it is under way."""

    number: int
    batches: int
    settings: Mapping[str, str]
    by: str
    is_open: bool = False
    """All workers came: batches are measured."""
    pooled: str = ""
    """The mean of the workers' buffers, in base64, until the next evaluation begins."""
    seconds: float = 0.0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_done: bool = False


class Evaluation(EvaluationFacts):
    """One evaluation. `measured`: batch -> its totals, until it is done."""

    def __init__(self, *args: Any, **facts: Any) -> None:
        super().__init__(*args, **facts)
        self.measured: dict[int, Mapping[str, Total]] = {}
        self.leases: dict[Session, Batches] = {}
        self.came: dict[Session, bytes] = {}
        """Who came, and with which buffers."""

    @property
    def left(self) -> Batches:
        held = Batches.of((0, self.batches))
        done = Batches.of(*((batch, batch + 1) for batch in self.measured))
        for lease in self.leases.values():
            held -= lease
        return held - done

    def measure(self, session: Session, measured: Iterable[BatchTotals]) -> list[int]:
        """Returns the batches that were not measured before. Raises InvalidMessage."""
        news = []
        for item in measured:
            if not 0 <= item.batch < self.batches:
                raise InvalidMessage(f"batch {item.batch} of {self.batches} was measured")
            if item.batch not in self.measured:
                self.measured[item.batch] = item.totals
                news.append(item.batch)
        done = Batches.of(*((batch, batch + 1) for batch in news))
        if rest := self.leases.get(session, Batches()) - done:
            self.leases[session] = rest
        else:
            self.leases.pop(session, None)
        return news

    def lease(self, session: Session, workers: int) -> Batches:
        """What the session holds, else half of its share of what is left; perhaps nothing."""
        if session not in self.leases and (left := self.left):
            share = max(1, -(-len(left) // (2 * max(1, workers))))
            self.leases[session] = left.first(share)
        return self.leases.get(session, Batches())

    def finish(self, seconds: float, steps: int) -> None:
        names = sorted({name for totals in self.measured.values() for name in totals})
        self.metrics = {name: self._mean(name) for name in names}
        self.seconds, self.steps, self.is_done = seconds, steps, True
        self.measured, self.leases, self.came = {}, {}, {}

    def _mean(self, name: str) -> float:
        totals = [t[name] for t in self.measured.values() if name in t]
        count = _exact_sum([total.count for total in totals])
        return _exact_sum([total.sum for total in totals]) / count if count else math.nan

    def row(self) -> Any:
        facts = {name: plain.dump(getattr(self, name)) for name in EvaluationFacts.__slots__}
        return plain.finite(facts)  # NaN is no JSON

    def status(self) -> EvaluationStatus:
        done = self.batches if self.is_done else len(self.measured)
        return EvaluationStatus(
            self.number, self.batches, done, self.seconds, self.steps, self.metrics
        )


def _exact_sum(values: list[float]) -> float:
    """Infinities and overflows, which `fsum` refuses, as plain addition has them."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


class Evaluations:
    """All of the run, by number. `touch` hears (kind, key) of a row that changed."""

    def __init__(self, found: Mapping[str, Mapping[str, Any]], touch: Touch) -> None:
        self._touch = touch
        self.all: dict[int, Evaluation] = {}
        for key, row in sorted(found.get("evaluation", {}).items(), key=lambda item: int(item[0])):
            metrics = {n: math.nan if v is None else v for n, v in row["metrics"].items()}
            self.all[int(key)] = Evaluation(**{**row, "metrics": metrics})
        for key, row in found.get("measured", {}).items():
            number, batch = map(int, key.split(":"))
            totals = {name: Total(*map(float, pair)) for name, pair in row.items()}
            self.all[number].measured[batch] = totals
        self.latest: dict[str, float] = {}
        """The newest value of each metric. Read after every event."""
        for evaluation in self.all.values():
            self.latest.update(evaluation.metrics)

    @property
    def current(self) -> Evaluation | None:
        """The one that is under way: the last, since nobody begins one before the last is done."""
        last = self.all.get(len(self.all))
        return None if last is None or last.is_done else last

    @property
    def is_open(self) -> bool:
        """The weights must stand still."""
        return self.current is not None and self.current.is_open

    def begin(self, part: EvaluationPart, by: str) -> Evaluation:
        """The evaluation that `part` is of. Raises UsageError where it cannot be begun."""
        number = part.number
        if number not in self.all:
            if number != len(self.all) + 1 or self.current is not None or part.batches < 1:
                fact = (
                    f"evaluation {number} of {part.batches} batches cannot follow {len(self.all)}"
                )
                raise UsageError(fact, todo="evaluate in the same order on every worker")
            self.all[number] = Evaluation(number, part.batches, dict(part.settings), by)
            self._touch("evaluation", number)
            if number > 1:
                self.all[number - 1].pooled = ""
                self._touch("evaluation", number - 1)
        return self.all[number]

    def measure(self, evaluation: Evaluation, part: EvaluationPart) -> None:
        if not evaluation.is_done:
            for batch in evaluation.measure(part.session, part.measured):
                self._touch("measured", f"{evaluation.number}:{batch}")

    def open(self, evaluation: Evaluation) -> None:
        evaluation.is_open = True
        evaluation.pooled = b64encode(pooling.mean(evaluation.came)).decode()
        self._touch("evaluation", evaluation.number)

    def abandon(self, evaluation: Evaluation) -> None:
        """Nobody is left who took part: the weights need not stand still, so it begins anew."""
        self._forget_totals(evaluation)
        evaluation.measured, evaluation.leases = {}, {}
        evaluation.is_open, evaluation.pooled = False, ""
        self._touch("evaluation", evaluation.number)

    def finish(self, evaluation: Evaluation, seconds: float, steps: int) -> None:
        self._forget_totals(evaluation)
        evaluation.finish(seconds, steps)
        self.latest.update(evaluation.metrics)
        self._touch("evaluation", evaluation.number)

    def _forget_totals(self, evaluation: Evaluation) -> None:
        for batch in evaluation.measured:
            self._touch("measured", f"{evaluation.number}:{batch}")

    def keys(self) -> list[tuple[str, str]]:
        """Of every durable row."""
        rows = [("evaluation", str(number)) for number in self.all]
        return rows + [("measured", f"{n}:{b}") for n, e in self.all.items() for b in e.measured]

    def measured_row(self, key: str) -> Any:
        number, batch = map(int, key.split(":"))
        totals = self.all[number].measured.get(batch)
        return totals and {name: [str(t.sum), str(t.count)] for name, t in totals.items()}
