"""What the gRPC carrier alone can suffer: tokens, dead peers, spoiled bytes, foreign clients."""

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from common.roads import TOKEN, GrpcRoad, StalledLog, eventually, nothing_lent
from server.hosts import RUN, Sender, host, spec

from hubring_common import rpc, wire
from hubring_common.carrier import frames
from hubring_common.carrier.grpc import GrpcCarrier, ShardService
from hubring_common.errors import Fatal, InvalidMessage, Unauthorized, Unreachable
from hubring_common.layout import plan
from hubring_common.messages import PullHeader
from hubring_proto.v1 import shard_pb2, shard_pb2_grpc
from hubring_server.weights import ShardWeights


@pytest.fixture
def grpc_road():
    with host() as (shard, weights):
        road = GrpcRoad(shard)
        yield road, weights
        road.close()
        nothing_lent(shard)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_wrong_token_is_refused_before_any_handler_runs(grpc_road, token):
    road, weights = grpc_road
    carrier = road.carrier(token)
    for call in (Sender(weights).push, Sender(weights).seed, Sender(weights).pull):
        with pytest.raises(Unauthorized):
            call(carrier)
    with rpc.open_channel(road.address) as channel:
        push = channel.stream_stream("/hubring.v1.Shard/Push")
        with pytest.raises(Unauthorized), rpc.calling("server-0"):
            list(push(iter([b"garbage"]), timeout=5, metadata=rpc.metadata(token)))
    assert road.found == []


def test_a_server_that_stops_is_unreachable_in_time(grpc_road):
    road, weights = grpc_road
    sender, carrier = Sender(weights), road.carrier()
    sender.seed(carrier)
    road.server.stop(0).wait()
    started = time.monotonic()
    with pytest.raises(Unreachable):
        sender.push(carrier, timeout=20.0)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("end", ["the server stops", "the carrier is closed"])
def test_an_end_in_the_middle_of_a_call_is_heard_of_at_once(end):
    log = StalledLog()
    with host(log=log) as (shard, weights), ThreadPoolExecutor(1) as pool:
        road = GrpcRoad(shard)
        sender, carrier = Sender(weights), road.carrier()
        sender.seed(carrier)
        push = pool.submit(sender.push, carrier, timeout=20.0)
        eventually(lambda: log.is_holding, "no push came")
        if end == "the server stops":
            road.server.stop(0)
        else:
            carrier.close()
        with pytest.raises(Unreachable, match="server-0"):
            push.result(timeout=5)
        log.flow()
        nothing_lent(shard)
        road.close()


SERVER = """
import signal
from common.roads import GrpcRoad, StalledLog, eventually
from server.hosts import Sender, host

log = StalledLog()
with host(log=log) as (shard, weights):
    road = GrpcRoad(shard)
    Sender(weights).seed(road.carrier())
    print(road.address, flush=True)
    eventually(lambda: log.is_holding, "no push came", 30)
    print("holds it", flush=True)
    signal.pause()
"""


def test_a_server_killed_in_the_middle_of_a_call_is_unreachable_at_once():
    command = [sys.executable, "-c", SERVER]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        carrier = GrpcCarrier(server.stdout.readline().strip(), TOKEN, "server-0")
        sender = Sender(ShardWeights(plan(spec(), 1), 0))
        with ThreadPoolExecutor(1) as pool:
            push = pool.submit(sender.push, carrier, timeout=20.0)
            assert server.stdout.readline() == "holds it\n"
            server.kill()
            with pytest.raises(Unreachable, match="server-0"):
                push.result(timeout=5)
        carrier.close()


def test_an_answer_that_nobody_reads_to_its_end_leaves_no_buffer():
    with host(shapes={"big": (8, 1 << 20)}) as (shard, weights):
        road = GrpcRoad(shard)
        Sender(weights).seed(road.carrier())
        with rpc.open_channel(road.address) as channel:
            pull = channel.unary_stream("/hubring.v1.Shard/Pull")
            header = wire.encode(PullHeader(RUN, 0, 1))
            call = pull(header, timeout=30, metadata=rpc.metadata(TOKEN))
            next(call)
            assert shard._outgoing.out == 1
            call.cancel()
            nothing_lent(shard)
        road.close()


def test_a_push_that_breaks_off_leaves_no_buffer(grpc_road):
    road, weights = grpc_road
    sender = Sender(weights)
    sender.seed(road.carrier())
    go_on = threading.Event()

    def begun():
        yield frames.header_message(wire.encode(sender.header(sender.buffers())))
        go_on.wait(5)

    with rpc.open_channel(road.address) as channel:
        push = channel.stream_stream("/hubring.v1.Shard/Push")
        call = push(begun(), timeout=30, metadata=rpc.metadata(TOKEN))
        eventually(lambda: road.shard._incoming.out == 1, "no buffer was made")
        call.cancel()
        nothing_lent(road.shard)
        go_on.set()


def test_nobody_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    carrier = GrpcCarrier(address, TOKEN, "server-0")
    with pytest.raises(Unreachable, match="server-0"):
        carrier.pull(PullHeader(RUN, 0, 1), [], 2.0)
    carrier.close()


def test_an_ordinary_protobuf_client_pushes_and_pulls(grpc_road):
    road, weights = grpc_road
    sender = Sender(weights)
    sender.seed(road.carrier())
    extents = sender.buffers(value=3.0)
    header = shard_pb2.PushHeader.FromString(wire.encode(sender.header(extents)))
    frames = [shard_pb2.Frame(offset=offset, payload=bytes(data)) for offset, data in extents]
    requests = [shard_pb2.PushRequest(header=header)]
    requests += [shard_pb2.PushRequest(frames=[frame]) for frame in frames]
    metadata = rpc.metadata(TOKEN)
    with rpc.open_channel(road.address) as channel:
        stub = shard_pb2_grpc.ShardStub(channel)
        (reply,) = stub.Push(iter(requests), timeout=5, metadata=metadata)
        assert reply.answer.verdict == shard_pb2.VERDICT_APPLIED
        assert sum(len(frame.payload) for frame in reply.frames) == weights.nbytes
        pull = stub.Pull(shard_pb2.PullHeader(run=RUN), timeout=5, metadata=metadata)
        (reply,) = pull
        data = b"".join(frame.payload for frame in reply.frames)
        assert torch.frombuffer(bytearray(data), dtype=torch.float32).eq(-3).all()


def flipped(message: bytes) -> bytes:
    """The last bit changed."""
    return message[:-1] + bytes([message[-1] ^ 1])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda messages: messages[:1],
        lambda messages: [*messages, messages[-1]],
        lambda messages: [messages[1], messages[0]],
        lambda messages: [messages[0], messages[0]],
        lambda messages: [messages[0], b"\xff\xff\xff\xff\xff"],
        lambda messages: [messages[0], frames.frame_message(4, memoryview(b"1234"))],
        lambda messages: [messages[0], flipped(messages[1]), *messages[2:]],
        lambda _messages: [b"garbage"],
        lambda _messages: [],
    ],
)  # fmt: skip
def test_bytes_that_are_not_those_that_were_sent_change_nothing(grpc_road, spoil):
    road, weights = grpc_road
    sender = Sender(weights)
    sender.seed(road.carrier())
    extents = sender.buffers()
    whole = [frames.header_message(wire.encode(sender.header(extents)))]
    whole += [frames.frame_message(*extent) for extent in extents]
    with rpc.open_channel(road.address) as channel:
        push = channel.stream_stream("/hubring.v1.Shard/Push")
        with pytest.raises(InvalidMessage), rpc.calling("server-0"):
            list(push(iter(spoil(whole)), timeout=5, metadata=rpc.metadata(TOKEN)))
    sender.pull(road.carrier())
    assert (sender.weights == 0).all()


class Spoiling(ShardService):
    """Changes the last bit of every answer."""

    def _push(self, stream, context):
        return map(flipped, super()._push(stream, context))

    def _pull(self, request, context):
        return map(flipped, super()._pull(request, context))


def test_weights_that_are_not_those_that_were_sent_are_refused():
    with host() as (shard, weights):
        road = GrpcRoad(shard, Spoiling)
        sender, carrier = Sender(weights), road.carrier()
        sender.seed(carrier)
        for call in (sender.push, sender.pull):
            with pytest.raises(InvalidMessage, match="the weights of server-0 arrived as"):
                call(carrier)
        road.close()


@pytest.mark.parametrize("limit", [rpc.MESSAGE_LIMIT, -1])
def test_a_message_past_the_limit_is_refused_for_good(grpc_road, limit):
    """By the sender, or by the receiver where the sender knows no limit."""
    road, _ = grpc_road
    options = [("grpc.max_send_message_length", limit)]
    with grpc.insecure_channel(road.address, options=options) as channel:
        push = channel.stream_stream("/hubring.v1.Shard/Push")
        with pytest.raises(Fatal, match="message larger than max"), rpc.calling("server-0"):
            list(push(iter([bytes(5 << 20)]), timeout=5, metadata=rpc.metadata(TOKEN)))
    assert road.found == []
