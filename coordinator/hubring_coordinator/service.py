"""The edge: the Coordinator service's methods as the shell's calls and streams."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc

from hubring_common import rpc, stacks
from hubring_common.errors import Busy, HubringError, InvalidMessage
from hubring_common.messages import FromMember, MemberStacks, Stacks, StacksRequest, ToMember
from hubring_coordinator.machine.events import Attached, Beat, OrderAcked, StacksDumped
from hubring_coordinator.shell import Outbox, Shell

CALLS = (
    "DeclareModel",
    "DeclareData",
    "MarkSeeded",
    "TakeTask",
    "SettleTasks",
    "FinishWork",
    "LeaveRun",
    "StopRun",
    "GetStatus",
    "GetLedger",
    "DrainMember",
    "DeclareStopRules",
    "Evaluate",
)
MEMBERS = 200
"""Streams at once. Each holds a thread of gRPC's, and its member one more for a parked call."""
THREADS = 2 * MEMBERS + 16


class Service:
    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._free = threading.BoundedSemaphore(MEMBERS)

    def add_to(self, server: grpc.Server) -> None:
        calls: dict[str, Any] = dict.fromkeys(CALLS, self._shell.call)
        rpc.add_control(
            server, "Coordinator", {**calls, "GetStacks": self.stacks, "Attend": self.attend}
        )

    def stacks(self, request: StacksRequest) -> Stacks:
        """The members' stacks, and first this process's own, as it waits for theirs."""
        answer: Stacks = self._shell.call(request)
        own = MemberStacks("coordinator", stacks.dump())
        return Stacks((own, *answer.members))

    def attend(
        self, requests: Iterator[FromMember], context: grpc.ServicerContext
    ) -> Iterator[ToMember]:
        """One member's stream: a thread reads what comes up, this generator says what goes down."""
        if not self._free.acquire(blocking=False):
            raise Busy(f"{MEMBERS} members attend already", todo="try again when some have left")
        try:
            outbox = self._shell.open_stream()
            reader = threading.Thread(
                target=self._read, args=(requests, outbox), name="attend", daemon=True
            )
            reader.start()
            yield from outbox.drain(self._shell.timing.lease, context.is_active)
        finally:
            self._free.release()

    def _read(self, requests: Iterator[FromMember], outbox: Outbox) -> None:
        try:
            for number, message in enumerate(requests):
                self._shell.post(_event(outbox.stream, message, is_first=number == 0))
            outbox.queue.put(None)
        except HubringError as error:
            outbox.queue.put(error)
        except grpc.RpcError:  # the member cancelled, or its connection broke
            outbox.queue.put(None)
        self._shell.close_stream(outbox)


def _event(
    stream: int, message: FromMember, *, is_first: bool
) -> Attached | Beat | OrderAcked | StacksDumped:
    """Raises InvalidMessage where hello is not the first message, or not only that."""
    match message:
        case FromMember(hello=hello) if hello is not None and is_first:
            return Attached(stream, hello)
        case FromMember(heartbeat=heartbeat) if heartbeat is not None and not is_first:
            return Beat(stream, heartbeat)
        case FromMember(acked=acked) if acked is not None and not is_first:
            return OrderAcked(stream, acked.order)
        case FromMember(stacks=dumped) if dumped is not None and not is_first:
            return StacksDumped(stream, dumped.request, dumped.text)
    raise InvalidMessage("a member says hello first, then heartbeats and acknowledgements")
