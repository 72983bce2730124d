"""Errors across a real call, the token, and peers that are no hubring."""

import socket
import threading
import time

import grpc
import pytest
from common.relay import Relay

from hubring_common import errors, rpc, wire
from hubring_common.errors import (
    Fatal,
    InvalidMessage,
    ModelMismatch,
    Retryable,
    Unauthorized,
    Unreachable,
    UsageError,
    VersionMismatch,
)
from hubring_common.messages import Acked, Done, Drain, FromMember, Stop, ToMember

TOKEN = "a-token"


@pytest.fixture
def served():
    """(address, what StopRun does): set `does["it"]` to a function of the request."""
    does = {"it": lambda _request: Done()}
    server = rpc.make_server(TOKEN, 4)
    rpc.add_control(server, "Coordinator", {"StopRun": lambda request: does["it"](request)})
    address = f"127.0.0.1:{rpc.bind(server, '127.0.0.1:0')}"
    server.start()
    yield address, does
    server.stop(0).wait()


def call(address, token=TOKEN, timeout=5.0):
    with rpc.open_channel(address) as channel:
        caller = rpc.Caller(channel, "Coordinator", token, "the coordinator")
        return caller.call("StopRun", Stop("why"), timeout)


def test_a_call_brings_message_and_answer(served):
    address, does = served
    seen = []
    does["it"] = lambda request: seen.append(request) or Done()
    assert call(address) == Done()
    assert seen == [Stop("why")]


@pytest.mark.parametrize("kind", errors.leaves(), ids=lambda k: k.__name__)
def test_each_error_arrives_as_it_left(served, kind):
    address, does = served

    def fail(_request):
        raise kind("a fact", who="server-1", todo="do this")

    does["it"] = fail
    with pytest.raises(kind) as caught:
        call(address)
    assert type(caught.value) is kind
    error = caught.value
    assert (error.fact, error.who, error.todo) == ("a fact", "server-1", "do this")


@pytest.mark.parametrize("length", [3000, 20_000])
def test_a_long_error_arrives_whole(served, length):
    address, does = served
    fact = "é" * length

    def fail(_request):
        raise ModelMismatch(fact)

    does["it"] = fail
    with pytest.raises(ModelMismatch) as caught:
        call(address)
    assert caught.value.fact == fact


def test_an_error_too_long_to_travel_is_still_no_reason_to_try_again(served):
    address, does = served

    def fail(_request):
        raise ModelMismatch("e" * 2 * rpc.ERROR_LIMIT)

    does["it"] = fail
    with pytest.raises(Fatal, match="metadata size"):
        call(address)


def test_a_message_too_large_to_send_is_no_reason_to_try_again(served):
    address, _ = served
    with rpc.open_channel(address) as channel, pytest.raises(Fatal, match="larger than max"):
        caller = rpc.Caller(channel, "Coordinator", TOKEN, "the coordinator")
        caller.call("StopRun", Stop("e" * (rpc.MESSAGE_LIMIT + 1)), 5)


def test_a_proxy_for_the_web_is_not_asked(served, monkeypatch):
    address, _ = served
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert call(address) == Done()


@pytest.mark.parametrize(("token", "how"), [("", "missing"), ("wrong", "wrong")])
def test_the_token_is_judged_before_the_request_is_read(served, token, how):
    address, does = served
    does["it"] = lambda _request: pytest.fail("the handler ran")
    with pytest.raises(Unauthorized, match=f"token is {how}"):
        call(address, token)


def test_garbage_gets_invalid_message(served):
    address, _ = served
    with rpc.open_channel(address) as channel, pytest.raises(InvalidMessage), rpc.calling("it"):
        raw = channel.unary_unary("/hubring.v1.Coordinator/StopRun")
        raw(b"\xff\xff\xff", timeout=5, metadata=rpc.metadata(TOKEN))


def test_a_handler_that_breaks_is_an_error_too(served):
    address, does = served
    does["it"] = lambda _request: 1 / 0
    with pytest.raises(InvalidMessage, match="UNKNOWN"):
        call(address)


def test_a_deadline_is_kept(served):
    address, does = served
    go = threading.Event()
    does["it"] = lambda _request: go.wait(5) and Done()
    with pytest.raises(Retryable, match="DEADLINE"):
        call(address, timeout=0.2)
    go.set()


def test_a_grpc_server_that_is_no_hubring():
    server = grpc.server(rpc.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(VersionMismatch, match="UNIMPLEMENTED"):
        call(f"127.0.0.1:{port}")
    server.stop(0).wait()


def test_a_port_that_speaks_something_else():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(Retryable):
            call(f"127.0.0.1:{listener.getsockname()[1]}", timeout=1.0)
        thread.join(5)


def test_nobody_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(Unreachable, match="the coordinator"):
        call(f"127.0.0.1:{port}")


def test_a_port_in_use_is_refused(served):
    address, _ = served
    other = rpc.make_server(TOKEN, 1)
    with pytest.raises(UsageError, match=f"cannot listen on {address}"):
        rpc.bind(other, address)


@pytest.fixture
def attended(monkeypatch):
    """(relay to a server, messages that its one stream has heard, set when the stream is over)."""
    monkeypatch.setattr(rpc, "KEEPALIVE", 0.3)
    heard, over = [], threading.Event()

    def attend(messages, _context):
        yield ToMember(drain=Drain("hello", alone=False))
        try:
            heard.extend(messages)
        finally:
            over.set()

    server = rpc.make_server(TOKEN, 4)
    rpc.add_control(server, "Coordinator", {"Attend": attend})
    address = f"127.0.0.1:{rpc.bind(server, '127.0.0.1:0')}"
    server.start()
    with Relay(address) as relay:
        yield relay, heard, over
    server.stop(0).wait()


def open_stream(channel):
    """An Attend stream that has said hello and been answered, and its end."""
    end = threading.Event()

    def messages():
        yield wire.encode(FromMember(acked=Acked(1)))
        end.wait(20)

    stream = channel.stream_stream("/hubring.v1.Coordinator/Attend")
    call = stream(messages(), metadata=rpc.metadata(TOKEN))
    assert next(call)
    return call, end


def test_a_network_cut_without_a_word_is_noticed_on_both_sides(attended):
    relay, _, over = attended
    with rpc.open_channel(relay.address) as channel:
        call, end = open_stream(channel)
        relay.cut()
        began = time.monotonic()
        with pytest.raises(Unreachable, match="UNAVAILABLE"), rpc.calling("the coordinator"):
            next(call)
        assert over.wait(5), "the server still waits for the member"
        assert time.monotonic() - began < 5
        end.set()


def test_an_idle_stream_is_asked_often_and_never_ended_for_it(attended):
    relay, heard, over = attended
    with rpc.open_channel(relay.address) as channel:
        _, end = open_stream(channel)
        assert not over.wait(7), "where only one side asks, gRPC ends it after some 5 s"
        end.set()
        assert over.wait(5)
    assert heard == [FromMember(acked=Acked(1))]
    assert relay.connections == 1
