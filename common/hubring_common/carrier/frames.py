"""Tensor bytes as frames: written by hand as valid protobuf, read into place.

A message of a shard's streams is `{header = 1; repeated frames = 2}`, the answers' likewise, so
that one pair of functions serves them all. An ordinary protobuf client reads and writes the same.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hubring_common.carrier.base import Extent, Extents, total
from hubring_common.errors import InvalidMessage
from hubring_common.wire import split_fields

PAYLOAD = (1 << 20) - 64
"""Payload bytes of a full frame: with its own bytes and gRPC's it fills one HTTP/2 frame. What is
no larger comes in one message with its header."""

_HEADER_TAG, _FRAME_TAG = 0x0A, 0x12
_OFFSET_TAG, _PAYLOAD_TAG = 0x09, 0x12


class Frame(NamedTuple):
    offset: int
    payload: memoryview


class Part(NamedTuple):
    """One message: the encoded header, if it has one, and frames."""

    header: bytes | None
    frames: list[Frame]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def is_inline(extents: Extents) -> bool:
    """Whether these bytes come in one message with their header."""
    return total(extents) <= PAYLOAD


def messages(header: bytes, extents: Extents) -> Iterator[bytes]:
    """The stream that carries an encoded header (or answer) and its payload."""
    if is_inline(extents):
        yield b"".join((*_header(header), *(p for e in extents for p in _frame(*e))))
        return
    yield b"".join(_header(header))
    for offset, data in extents:
        for at in range(0, data.nbytes, PAYLOAD):
            yield frame_message(offset + at, data[at : at + PAYLOAD])


def frame_message(offset: int, payload: memoryview) -> bytes:
    """The message of one frame. Copies the payload once: gRPC takes bytes alone."""
    return b"".join(_frame(offset, payload))


def header_message(encoded: bytes) -> bytes:
    """The message of a header alone."""
    return b"".join(_header(encoded))


def _header(encoded: bytes) -> tuple[bytes, bytes]:
    return bytes((_HEADER_TAG,)) + varint(len(encoded)), encoded


def _frame(offset: int, payload: memoryview) -> tuple[bytes, memoryview]:
    inner = bytes((_OFFSET_TAG,)) + offset.to_bytes(8, "little")
    inner += bytes((_PAYLOAD_TAG,)) + varint(payload.nbytes)
    return bytes((_FRAME_TAG,)) + varint(len(inner) + payload.nbytes) + inner, payload


def parse(message: bytes) -> Part:
    """What a message carries. Raises InvalidMessage where it is none of ours."""
    header, frames = None, []
    for tag, value in split_fields(message):
        if tag == _HEADER_TAG:
            header = bytes(value)
        elif tag == _FRAME_TAG:
            frames.append(_parse_frame(value))
        else:
            raise InvalidMessage(f"{len(message)} bytes are neither a header nor a frame")
    return Part(header, frames)


def _parse_frame(body: memoryview) -> Frame:
    offset, payload = 0, memoryview(b"")
    for tag, value in split_fields(body):
        if tag == _OFFSET_TAG:
            offset = int.from_bytes(value, "little")
        elif tag == _PAYLOAD_TAG:
            payload = value
    return Frame(offset, payload)


def begin(stream: Iterator[bytes]) -> tuple[bytes, list[Frame]]:
    """(header, frames) of a stream's first message."""
    first = next(stream, None)
    if first is None:
        raise InvalidMessage("the stream ended before its header")
    header, frames = parse(first)
    if header is None:
        raise InvalidMessage("a frame came where the header was due")
    return header, frames


class Filler:
    """Fills extents from frames that come in order. Trusts no offset and no length."""

    def __init__(self, extents: Extents) -> None:
        self._rest = iter(extents)
        self._missing = total(extents)
        self._at = self._stop = 0
        self._data = np.empty(0, np.uint8)
        self._start = 0

    def fill(self, frame: Frame) -> None:
        offset, payload = frame.offset, np.frombuffer(frame.payload, np.uint8)
        while payload.size:
            self._open(offset)
            count = min(payload.size, self._stop - self._at)
            target = self._data[self._at - self._start : self._at - self._start + count]
            np.copyto(target, payload[:count])  # releases the interpreter's lock
            self._at += count
            self._missing -= count
            offset, payload = offset + count, payload[count:]

    def _open(self, offset: int) -> None:
        """Make `offset` the next byte to fill, or refuse the frame."""
        if self._at == self._stop:
            extent = next(self._rest, None)
            if extent is None:
                raise InvalidMessage(f"bytes came for offset {offset}, past all that was due")
            self._start = self._at = extent.offset
            self._stop = extent.offset + extent.data.nbytes
            self._data = np.frombuffer(extent.data, np.uint8)
        if offset != self._at:
            raise InvalidMessage(f"a frame came for offset {offset}, {self._at} was due")

    def finish(self) -> None:
        if self._missing:
            raise InvalidMessage(f"the stream ended {self._missing} bytes short")


def receive(frames: Iterable[Frame], stream: Iterable[bytes], extents: Extents) -> None:
    """Fill `extents` from `frames` and the rest of a stream. Raises InvalidMessage."""
    filler = Filler([e for e in extents if e.data.nbytes])
    for frame in frames:
        filler.fill(frame)
    for message in stream:
        part = parse(message)
        if part.header is not None:
            raise InvalidMessage("a second header came where a frame was due")
        for frame in part.frames:
            filler.fill(frame)
    filler.finish()


def whole(data: memoryview) -> list[Extent]:
    """A shard's bytes as one extent."""
    return [Extent(0, data)]
