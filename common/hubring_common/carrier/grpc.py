"""The gRPC carrier: everywhere. One call a push, so that each has its deadline and its end."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import grpc

from hubring_common import rpc, wire
from hubring_common.carrier.base import (
    Extents,
    ShardPort,
    Staging,
    Version,
    check_digest,
    digest_of,
)
from hubring_common.carrier.frames import Frame, begin, is_inline, messages, receive, whole
from hubring_common.ids import Digest
from hubring_common.messages import (
    PullAnswer,
    PullHeader,
    PushAnswer,
    PushHeader,
    SeedAnswer,
    SeedHeader,
)

T = TypeVar("T")
SERVICE = "hubring.v1.Shard"
NO_DEADLINE = 60.0
"""Seconds that the far end works for a caller who set no deadline."""


class Upload(NamedTuple):
    """What goes up in one call: `stream` has one message, or many."""

    name: str
    is_one: bool
    stream: Iterator[bytes]


class GrpcCarrier:
    """A worker's road to one shard over a channel of its own. Implements `Carrier`.

    What fits into one message is sent, or awaited, as one: the same bytes as a stream of one
    message, at a fraction of its cost here.
    """

    def __init__(self, address: str, token: str, who: str) -> None:
        self._channel = rpc.open_channel(address)
        self._metadata, self._who = rpc.metadata(token), who
        self._calls: dict[tuple[str, str, str], Any] = {}

    def seed(self, header: SeedHeader, weights: Extents, timeout: float) -> SeedAnswer:
        upload = Upload("Seed", is_inline(weights), messages(wire.encode(header), weights))
        with rpc.calling(self._who):
            data = self._call(upload, is_one_down=True, timeout=timeout)
        return wire.decode(SeedAnswer, data)

    def push(
        self, header: PushHeader, grads: Extents, weights: Extents, timeout: float
    ) -> PushAnswer:
        upload = Upload("Push", is_inline(grads), messages(wire.encode(header), grads))
        return self._exchange(upload, PushAnswer, weights, timeout)

    def pull(self, header: PullHeader, weights: Extents, timeout: float) -> PullAnswer:
        upload = Upload("Pull", True, iter((wire.encode(header),)))
        return self._exchange(upload, PullAnswer, weights, timeout, have=header.have)

    def close(self) -> None:
        self._channel.close()

    def _exchange(
        self, upload: Upload, kind: type[T], weights: Extents, timeout: float, have: Digest = 0
    ) -> T:
        """The answer, then its frames into `weights`, checked whole."""
        is_one_down = is_inline(weights)
        with rpc.calling(self._who):
            call = self._call(upload, is_one_down=is_one_down, timeout=timeout)
            try:
                replies = iter((call,)) if is_one_down else call
                encoded, frames = begin(replies)
                answer: Any = wire.decode(kind, encoded)
                if answer.digest != have:
                    receive(frames, replies, weights)
            finally:
                if not is_one_down:
                    call.cancel()  # harmless after the end; else the far end would go on sending
        check_digest(weights, answer.digest, f"the weights of {self._who}")
        return answer  # type: ignore[no-any-return]

    def _call(self, upload: Upload, *, is_one_down: bool, timeout: float) -> Any:
        """Call by the shape that fits: one message or many, up and down."""
        up, down = ("unary" if one else "stream" for one in (upload.is_one, is_one_down))
        if (call := self._calls.get((upload.name, up, down))) is None:
            call = getattr(self._channel, f"{up}_{down}")(f"/{SERVICE}/{upload.name}")
            self._calls[upload.name, up, down] = call
        request = next(upload.stream) if upload.is_one else upload.stream
        return call(request, timeout=timeout, metadata=self._metadata)


class ShardService:
    """The far end: serves the shards that `find` knows. It raises where there is none."""

    def __init__(self, find: Callable[[int], ShardPort[Any]]) -> None:
        self._find = find

    def add_to(self, server: grpc.Server) -> None:
        handlers: dict[str, Any] = {
            "Seed": grpc.stream_unary_rpc_method_handler(self._seed),
            "Push": grpc.stream_stream_rpc_method_handler(self._push),
            "Pull": grpc.unary_stream_rpc_method_handler(self._pull),
        }
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        server.add_generic_rpc_handlers((generic,))

    def _seed(self, stream: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        with rpc.answering(context):
            encoded, frames = begin(stream)
            header = wire.decode(SeedHeader, encoded)
            port, timeout = self._find(header.shard), _remaining(context)
            staging = port.stage_seed(header, timeout)
            what = "a still tensor" if header.still else "the first weights"
            _fill(staging, frames, stream, header.digest, what)
            return wire.encode(port.seed(header, staging, timeout))

    def _push(self, stream: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with rpc.answering(context):
            encoded, frames = begin(stream)
            header = wire.decode(PushHeader, encoded)
            port, timeout = self._find(header.shard), _remaining(context)
            staging = port.stage_push(header, timeout)
            _fill(staging, frames, stream, header.digest, "a gradient")
            answer, version = port.push(header, staging, timeout)
            yield from _send(answer, version)

    def _pull(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        with rpc.answering(context):
            header = wire.decode(PullHeader, request)
            version = self._find(header.shard).pull(header, _remaining(context))
            yield from _send(PullAnswer(0, 0, 0), version, have=header.have)


def _remaining(context: grpc.ServicerContext) -> float:
    remaining = context.time_remaining()
    return NO_DEADLINE if remaining is None else min(remaining, NO_DEADLINE * 60)


def _fill(
    staging: Staging, frames: list[Frame], stream: Iterator[bytes], digest: int, what: str
) -> None:
    """Receive a payload and check it. The room goes back where that fails."""
    try:
        receive(frames, stream, staging.extents)
        check_digest(staging.extents, digest, what)
    except BaseException:
        staging.discard()
        raise


def _send(answer: PushAnswer | PullAnswer, version: Version, have: Digest = 0) -> Iterator[bytes]:
    try:
        extents = whole(version.data)
        digest = digest_of(extents)
        described = replace(answer, version=version.lsn, nbytes=version.data.nbytes, digest=digest)
        yield from messages(wire.encode(described), [] if digest == have else extents)
    finally:
        version.release()
