"""Frames: bytes that never change, and a receiver that trusts none of them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubring_common.carrier.base import Extent
from hubring_common.carrier.frames import (
    PAYLOAD,
    Filler,
    Frame,
    begin,
    frame_message,
    header_message,
    messages,
    parse,
    receive,
)
from hubring_common.errors import InvalidMessage
from hubring_proto.v1 import shard_pb2


def room(*ranges):
    """(backing array, extents) for the byte ranges."""
    backing = np.zeros(max((stop for _, stop in ranges), default=0), np.uint8)
    view = memoryview(backing)
    return backing, [Extent(start, view[start:stop]) for start, stop in ranges]


def test_golden_bytes():
    frame = frame_message(0x0102030405060708, memoryview(b"abc"))
    assert frame.hex() == "120e" + "09" + "0807060504030201" + "1203" + "616263"
    assert frame_message(0, memoryview(b"")).hex() == "120b" + "09" + "00" * 8 + "1200"
    assert header_message(b"xyz").hex() == "0a03" + "78797a"
    long = frame_message(0, memoryview(bytes(300)))
    assert long[:16].hex() == "12b802" + "09" + "00" * 8 + "12ac02" + "00"


def test_a_full_frame_fills_one_mebibyte_at_most():
    message = frame_message(2**63, memoryview(bytes(PAYLOAD)))
    grpc_prefix = 5
    assert PAYLOAD < len(message) + grpc_prefix <= 1 << 20


def test_protobuf_reads_what_we_write_and_we_read_what_it_writes():
    message = shard_pb2.PushRequest.FromString(frame_message(77, memoryview(b"abc")))
    assert [(f.offset, f.payload) for f in message.frames] == [(77, b"abc")]
    for offset in (0, 5, 2**40):
        theirs = shard_pb2.PullReply(frames=[shard_pb2.Frame(offset=offset, payload=b"xy")])
        (frame,) = parse(theirs.SerializeToString()).frames
        assert (frame.offset, bytes(frame.payload)) == (offset, b"xy")
    header = shard_pb2.PushHeader(run="r", shard=3)
    ours = shard_pb2.PushRequest.FromString(header_message(header.SerializeToString()))
    assert ours.header == header
    theirs = shard_pb2.PushRequest(header=header).SerializeToString()
    assert parse(theirs) == (header.SerializeToString(), [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3 * PAYLOAD // 2), min_size=1, max_size=3), st.integers(1, 5))
def test_what_is_sent_in_some_extents_arrives_in_others(sizes, cuts):
    whole = np.random.default_rng(sum(sizes)).integers(0, 255, sum(sizes), np.uint8)
    starts = np.cumsum([0, *sizes])
    view = memoryview(whole)
    source = [Extent(int(a), view[a:b]) for a, b in pairwise(starts)]
    edges = np.linspace(0, len(whole), cuts + 1).astype(int)
    target, extents = room(*pairwise(edges.tolist()))
    stream = messages(b"header", source)
    header, frames = begin(stream)
    receive(frames, stream, extents)
    assert header == b"header"
    assert (target == whole).all()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([(0, 4)], "4 bytes short"),
        ([(0, 4), (5, 3)], "for offset 5, 4 was due"),
        ([(0, 4), (3, 5)], "for offset 3, 4 was due"),
        ([(4, 4), (0, 4)], "for offset 4, 0 was due"),
        ([(0, 8), (8, 1)], "past all that was due"),
        ([(0, 9)], "past all that was due"),
        ([(2**63, 8)], "0 was due"),
        ([], "8 bytes short"),
    ],
)
def test_frames_that_are_not_due_are_refused(frames, words):
    _, extents = room((0, 8))
    filler = Filler(extents)

    def fill():
        for offset, size in frames:
            filler.fill(Frame(offset, memoryview(bytes(size))))
        filler.finish()

    with pytest.raises(InvalidMessage, match=words):
        fill()


def test_a_frames_later_fields_are_passed_over():
    inner = frame_message(7, memoryview(b"abc"))[2:] + b"\x18\x05" + b"\xf2\x7f\x01x"
    (frame,) = parse(b"\x12" + bytes([len(inner)]) + inner).frames
    assert (frame.offset, bytes(frame.payload)) == (7, b"abc")


def test_a_frame_without_bytes_fills_nothing():
    _, extents = room((0, 4))
    with pytest.raises(InvalidMessage, match="4 bytes short"):
        receive([], [frame_message(0, memoryview(b"")), b"", b"\x12\x00"], extents)
    receive([], [frame_message(2**63, memoryview(b""))], room((5, 5))[1])


def test_what_fits_comes_in_one_message_with_its_header():
    _, small = room((0, 100), (200, 300))
    (one,) = messages(b"", small)
    assert [frame.offset for frame in parse(one).frames] == [0, 200]
    message = shard_pb2.PullReply.FromString(one)
    assert len(message.frames) == 2
    _, large = room((0, PAYLOAD + 1))
    assert [len(parse(m).frames) for m in messages(b"header", large)] == [0, 1, 1]


def test_a_gap_between_extents_is_not_filled():
    backing, extents = room((0, 4), (8, 12))
    filler = Filler(extents)
    filler.fill(Frame(0, memoryview(b"\1" * 4)))
    filler.fill(Frame(8, memoryview(b"\2" * 4)))
    filler.finish()
    assert bytes(backing) == b"\1\1\1\1\0\0\0\0\2\2\2\2"


def test_a_header_where_a_frame_is_due():
    _, extents = room((0, 4))
    with pytest.raises(InvalidMessage, match="second header"):
        receive([], [header_message(b"")], extents)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=4))
def test_garbage_gets_only_our_error(stream):
    _, extents = room((0, 8), (16, 20))
    with pytest.raises(InvalidMessage):
        receive([], stream, extents)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 255))
def test_a_changed_byte_gets_our_error_or_other_bytes_and_nothing_else(at, value):
    message = bytearray(frame_message(0, memoryview(bytes(24))))
    message[at % len(message)] = value
    backing, extents = room((0, 24))
    try:
        receive([], [bytes(message)], extents)
    except InvalidMessage:
        return
    assert np.count_nonzero(backing) <= 1
