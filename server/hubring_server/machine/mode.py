"""How a run steps, as data: small functions that each answer one question."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from hubring_common.ids import Session
from hubring_server.machine.messages import Push

Sessions: TypeAlias = frozenset[Session]
Waiting: TypeAlias = Mapping[Session, Push]


@dataclass(frozen=True, slots=True)
class Mode:
    # The next record's pushes, in order of summation; () to wait.
    choose: Callable[[Waiting, Sessions], tuple[Push, ...]]


def each_alone(waiting: Waiting, _sessions: Sessions) -> tuple[Push, ...]:
    return tuple(waiting.values())[:1]


ASYNC = Mode(each_alone)
MODES: Mapping[str, Mode] = {"async": ASYNC}
