"""Asking a coordinator: its status, and to stop. For commands; needs no torch."""

from typing import Self

from hubring_common import rpc
from hubring_common.messages import (
    Ledger,
    LedgerRequest,
    MemberDrain,
    Stacks,
    StacksRequest,
    Status,
    StatusRequest,
    Stop,
)

CALL_TIMEOUT = 5.0
"""Seconds that a call may take."""


class Control:
    """Use as a context manager. Calls raise Unreachable, TimedOut or Unauthorized."""

    def __init__(self, address: str, token: str, timeout: float = CALL_TIMEOUT) -> None:
        self._channel = rpc.open_channel(address)
        self._caller = rpc.Caller(self._channel, "Coordinator", token, f"coordinator {address}")
        self._timeout = timeout

    def status(self) -> Status:
        answer: Status = self._caller.call("GetStatus", StatusRequest(), self._timeout)
        return answer

    def stacks(self) -> Stacks:
        """Every member's Python stacks. The coordinator waits for them up to half a lease."""
        answer: Stacks = self._caller.call("GetStacks", StacksRequest(), self._timeout)
        return answer

    def ledger(self, epoch: int) -> Ledger:
        """Who trained each batch of one epoch."""
        answer: Ledger = self._caller.call("GetLedger", LedgerRequest(epoch), self._timeout)
        return answer

    def drain(self, member: str, why: str) -> None:
        """One worker finishes what it has in hand and leaves. Raises UsageError for no such one."""
        self._caller.call("DrainMember", MemberDrain(member, why), self._timeout)

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """Drain the run, or end it `at_once`."""
        self._caller.call("StopRun", Stop(why, at_once), self._timeout)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
