"""Collective evaluation and the rules that end a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from hubring_common.ids import Session


@dataclass(frozen=True, slots=True)
class StopRule:
    """`kind`: steps, epochs or seconds reach `value`; "reaches": `metric` does; "stalls": `metric`
    has not improved by more than `value` in `patience` evaluations (finished epochs, for a metric
    that is logged). `maximize`: larger is better.
    """

    kind: str
    metric: str = ""
    value: float = 0.0
    patience: int = 0
    maximize: bool = False


@dataclass(frozen=True, slots=True)
class StopRules:
    session: Session
    rules: tuple[StopRule, ...]


@dataclass(frozen=True, slots=True)
class Total:
    sum: float
    count: float


@dataclass(frozen=True, slots=True)
class BatchTotals:
    batch: int
    totals: Mapping[str, Total]


@dataclass(frozen=True, slots=True)
class EvaluationPart:
    """A worker has come to evaluation `number`, and has `measured` these batches of its task.

    After a lost answer the same part is sent again, and gets the same answer.
    """

    session: Session
    number: int
    batches: int
    settings: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[BatchTotals, ...] = ()
    buffers: bytes = b""
    """As in Finish; with a worker's first part of an evaluation."""


class EvaluationState(Enum):
    TASK = 1
    DONE = 2
    WAIT = 3
    """Ask again."""


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    state: EvaluationState
    first: int = 0
    count: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    buffers: bytes = b""
    """The mean over the workers, in answer to a worker's own."""
