"""What the machine is told, and what it asks of its shell.

A stream is one Attend call, a call is one unary call; the shell numbers both. The shell commits
every Put of a batch of events before it performs anything else of that batch.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

from hubring_common.errors import HubringError
from hubring_common.messages import (
    DataDeclaration,
    Done,
    Drain,
    DumpStacks,
    End,
    EvaluationPart,
    EvaluationTask,
    Finish,
    Formed,
    Heartbeat,
    Hello,
    Install,
    Leave,
    Ledger,
    LedgerRequest,
    MemberDrain,
    Members,
    ModelDeclaration,
    Quiet,
    Recall,
    Seeded,
    Settle,
    Stacks,
    StacksRequest,
    Status,
    StatusRequest,
    Stop,
    StopRules,
    Take,
    Taken,
    Welcome,
)

Stream: TypeAlias = int
Call: TypeAlias = int
Request: TypeAlias = (
    ModelDeclaration
    | DataDeclaration
    | Seeded
    | Take
    | Settle
    | Finish
    | Leave
    | Stop
    | StatusRequest
    | StacksRequest
    | LedgerRequest
    | EvaluationPart
    | StopRules
    | MemberDrain
)
Result: TypeAlias = Done | Taken | Status | Stacks | Ledger | EvaluationTask
Order: TypeAlias = Welcome | Install | Members | Formed | Quiet | Drain | Recall | End | DumpStacks

# --- events --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attached:
    stream: Stream
    hello: Hello


@dataclass(frozen=True, slots=True)
class Beat:
    stream: Stream
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class OrderAcked:
    stream: Stream
    order: int


@dataclass(frozen=True, slots=True)
class StacksDumped:
    """A member's answer of DumpStacks."""

    stream: Stream
    request: int
    text: str


@dataclass(frozen=True, slots=True)
class Detached:
    """The stream broke, or its member closed it."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Called:
    call: Call
    request: Request


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. At least once every half heartbeat."""


Event: TypeAlias = Attached | Beat | OrderAcked | StacksDumped | Detached | Called | Tick

# --- effects -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Put:
    """A durable row: plain data under (kind, key); None deletes it."""

    kind: str
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Send:
    stream: Stream
    order: Order


@dataclass(frozen=True, slots=True)
class Close:
    """End the stream with `error`."""

    stream: Stream
    error: HubringError


@dataclass(frozen=True, slots=True)
class Answer:
    call: Call
    result: Result | HubringError


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Over:
    """The run is over; `status` is its last word."""

    status: Status


@dataclass(frozen=True, slots=True)
class Exit:
    """Every member is gone, or was waited for long enough; `status` has what they said last."""

    status: Status


Effect: TypeAlias = Put | Send | Close | Answer | Note | Over | Exit
