"""gRPC as the project uses it: channels, servers, the token, and errors across a call.

Control calls carry `messages`; what a service's methods take and give is read from the .proto.
The token is judged before any handler runs or any byte of the request is decoded.
"""

import hmac
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

# A forked child (a DataLoader worker) makes no calls; gRPC's handlers would only complain in it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from hubring_common import errors, wire
from hubring_common.errors import HubringError, Unauthorized

log = logging.getLogger(__name__)

TOKEN_KEY = "hubring-token"  # noqa: S105 - the key, not a token
ERROR_KEY = "hubring-error-bin"
HEALTH_SERVICE = "/grpc.health.v1.Health/"
MESSAGE_LIMIT = 4 << 20
"""Bytes of one gRPC message; frames stay below 1 MiB, a large model's spec may not."""
ERROR_LIMIT = 64 << 10
"""Bytes of the metadata that an error travels in. gRPC's own 8 KiB may not hold a long fact."""
DETAILS = 200
"""Characters of an error's text in gRPC's own status, for clients that know no other."""

KEEPALIVE = 3.0
"""Seconds: a connection that brings nothing for so long is asked, and given up when twice as long
brings no answer. A network that is cut without a word, or an address that is another's now, would
else be noticed when TCP gives up, after a quarter of an hour. Short enough that a member is back
within a lease of 10 s; long enough for the 4 MB that a link of 10 Mbit/s may have queued before
the answer.
"""

_COMMON = (
    ("grpc.enable_http_proxy", 0),  # http_proxy would hijack the cluster's traffic
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", ERROR_LIMIT),
)
_SERVER = (*_COMMON, ("grpc.so_reuseport", 0))  # else two servers silently share a port
_CHANNEL = (
    *_COMMON,
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, closed with the channel
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

STATUS: Mapping[type[HubringError], grpc.StatusCode] = {
    errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
    errors.TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotYet: grpc.StatusCode.UNAVAILABLE,
    errors.Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LeaseLost: grpc.StatusCode.ABORTED,
    errors.ScriptFailed: grpc.StatusCode.UNKNOWN,
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SettingsMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VersionMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    errors.Diverged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WeightsLost: grpc.StatusCode.DATA_LOSS,
    errors.RunEnded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
}
"""The status of each kind of error; the error itself travels in the trailing metadata."""

_FROM_STATUS: Mapping[grpc.StatusCode, type[HubringError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TimedOut,
    grpc.StatusCode.CANCELLED: errors.Unreachable,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthorized,
    grpc.StatusCode.UNIMPLEMENTED: errors.VersionMismatch,
}
"""For a status that came without an error of ours: from gRPC itself, or from no hubring at all.

gRPC's own RESOURCE_EXHAUSTED is not there: a message past MESSAGE_LIMIT is too large each time.
"""


def _keepalive() -> tuple[tuple[str, int], ...]:
    """Both sides ask, so both must bear it: else gRPC answers ENHANCE_YOUR_CALM, too_many_pings."""
    after = round(1000 * KEEPALIVE)
    return (
        ("grpc.keepalive_time_ms", after),
        ("grpc.keepalive_timeout_ms", 2 * after),  # of TCP's acknowledgements too
        ("grpc.http2.ping_timeout_ms", 2 * after),  # else gRPC waits a minute all the same
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", after // 2),
        ("grpc.http2.max_ping_strikes", 0),
    )


def open_channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=(*_CHANNEL, *_keepalive()))


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    return ((TOKEN_KEY, token),)


def make_server(token: str, threads: int) -> grpc.Server:
    """A server that refuses calls without `token`. `threads` bounds the calls under way."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
    return grpc.server(pool, interceptors=[TokenGate(token)], options=(*_SERVER, *_keepalive()))


def bind(server: grpc.Server, address: str) -> int:
    """The bound port. Raises UsageError where the address is taken or not this machine's."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise errors.UsageError(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's",
            todo="choose another address, or port 0 for any free one",
        )
    return port


class TokenGate(grpc.ServerInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None or details.method.startswith(HEALTH_SERVICE):
            return handler
        given = dict(details.invocation_metadata).get(TOKEN_KEY, "")
        if hmac.compare_digest(str(given).encode(), self._token):
            return handler
        return _refusing(handler, "missing" if not given else "wrong")


def _refusing(handler: Any, how: str) -> Any:
    """A handler of the same shape that only aborts."""

    def refuse(_request: Any, context: grpc.ServicerContext) -> Any:
        todo = "give the run's token file with --token-file"
        abort(context, Unauthorized(f"the run's token is {how}", todo=todo))

    shape = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    return getattr(grpc, f"{shape}_rpc_method_handler")(refuse)


def abort(context: grpc.ServicerContext, error: HubringError) -> None:
    """End the call with `error`. Never returns: gRPC raises."""
    context.set_trailing_metadata(((ERROR_KEY, wire.encode_error(error)),))
    context.abort(STATUS[type(error)], str(error)[:DETAILS])


@contextmanager
def answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turns a HubringError of a handler into the call's status."""
    try:
        yield
    except HubringError as error:
        abort(context, error)


@contextmanager
def calling(who: str) -> Iterator[None]:
    """Turns a call's status into the HubringError that it stands for."""
    try:
        yield
    except grpc.RpcError as failed:
        raise error_of(failed, who) from None


def error_of(failed: Any, who: str) -> HubringError:
    for key, value in failed.trailing_metadata() or ():
        if key == ERROR_KEY:
            return wire.decode_error(value)
    code, details = failed.code(), failed.details() or ""
    kind = _FROM_STATUS.get(code, errors.InvalidMessage)
    return kind(f"{code.name}: {details}", who=who)


# --- services ------------------------------------------------------------------------------

Unary = Callable[[Any], Any]


def add_control(server: grpc.Server, service: str, behaviours: Mapping[str, Any]) -> None:
    """Serve the methods of `service` whose names `behaviours` has.

    A unary method's behaviour takes its message and returns its answer; one that streams both
    ways takes (iterator of messages, context) and yields answers.
    """
    methods = wire.methods(service)
    handlers = {name: _handler(methods[name], run) for name, run in behaviours.items()}
    generic = grpc.method_handlers_generic_handler(f"hubring.v1.{service}", handlers)
    server.add_generic_rpc_handlers((generic,))


def _handler(method: wire.Method, behave: Any) -> Any:
    def unary(data: bytes, context: grpc.ServicerContext) -> bytes:
        with answering(context):
            return wire.encode(behave(wire.decode(method.request, data)))
        raise AssertionError("abort returned")

    def stream(items: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with answering(context):
            requests: Iterator[Any] = (wire.decode(method.request, data) for data in items)
            yield from map(wire.encode, behave(requests, context))

    if method.streams:
        return grpc.stream_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(unary)


class Caller:
    """Calls the unary methods of one service at one address."""

    def __init__(self, channel: grpc.Channel, service: str, token: str, who: str) -> None:
        self._metadata, self._who = metadata(token), who
        self._methods = wire.methods(service)
        self._calls: dict[str, Any] = {
            name: channel.unary_unary(f"/hubring.v1.{service}/{name}")
            for name, method in self._methods.items()
            if not method.streams
        }

    def call(self, name: str, request: Any, timeout: float) -> Any:
        """The answer, as the method's message. Raises what `error_of` finds."""
        encoded = wire.encode(request)
        try:
            with calling(self._who):
                data = self._calls[name](
                    encoded, timeout=timeout, metadata=self._metadata, wait_for_ready=False
                )
        except ValueError:  # gRPC's word for a channel that was closed here
            raise errors.Unreachable("the channel was closed", who=self._who) from None
        return wire.decode(self._methods[name].answer, data)
