"""Messages to protobuf and back, by field name. The only reader of the generated control types.

A dataclass `Foo` of `messages` is the message `hubring.v1.Foo`: the same fields, nested ones
alike. An absent message field is None; a oneof is a dataclass of optional fields.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from math import isfinite
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from hubring_common import layout, messages
from hubring_common.errors import KINDS, HubringError, InvalidMessage
from hubring_common.ids import BatchKey, PushId
from hubring_proto.v1 import common_pb2, coordinator_pb2, shard_pb2

T = TypeVar("T")
Convert = Callable[[Any], Any]

_PLAIN = (bool, int, float, str, bytes)


@cache
def message_class(kind: type) -> type[Message]:
    """The generated class of a dataclass of `messages`. Raises LookupError where there is none."""
    for module in (common_pb2, coordinator_pb2, shard_pb2):
        if (found := getattr(module, kind.__name__, None)) is not None:
            return typing.cast("type[Message]", found)
    raise LookupError(f"{kind.__name__} has no message in hubring.v1")


def fields(kind: type) -> dict[str, Any]:
    """Field name -> type, of a dataclass or a NamedTuple."""
    return typing.get_type_hints(kind)


def encode(value: Any) -> bytes:
    return to_wire(value).SerializeToString()


def decode(kind: type[T], data: bytes) -> T:
    """Raises InvalidMessage where `data` is not a `kind`."""
    hashable = typing.cast("Any", kind)
    try:
        message = message_class(hashable).FromString(data)
        return typing.cast("T", _decoder(hashable)(message))
    except (DecodeError, ValueError, TypeError) as error:
        fact = f"{len(data)} bytes are not a {kind.__name__}: {error}"
        raise InvalidMessage(fact) from None


def to_wire(value: Any) -> Message:
    kind: Any = type(value)
    return typing.cast("Message", _message_encoder(kind)(value))


@cache
def _message_encoder(kind: type) -> Convert:
    message, encoders = message_class(kind), [(n, _encoder(h)) for n, h in fields(kind).items()]
    return lambda value: message(**{name: enc(getattr(value, name)) for name, enc in encoders})


@cache
def _encoder(hint: Any) -> Convert:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        inner = _encoder(args[0])
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        inner = _encoder(args[0])
        return lambda values: [inner(v) for v in values]
    if _is_mapping(origin):
        inner = _encoder(args[1])
        return lambda values: {_text(k): inner(v) for k, v in values.items()}
    if hint in _PLAIN:
        return _text if hint is str else lambda value: value
    if issubclass(hint, Enum):
        return lambda value: value.value
    return to_wire


def _text(value: str) -> str:
    """Without lone surrogates, which protobuf refuses; a path in a script's error may have one."""
    return value if value.isascii() else value.encode(errors="replace").decode()


@cache
def _decoder(hint: Any) -> Convert:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _decoder(args[0])
    if origin is tuple:
        inner = _decoder(args[0])
        return lambda values: tuple(inner(v) for v in values)
    if _is_mapping(origin):
        inner = _decoder(args[1])
        return lambda values: {k: inner(v) for k, v in values.items()}
    if hint in _PLAIN:
        return lambda value: value
    if issubclass(hint, Enum):
        return typing.cast("Convert", hint)
    return _message_decoder(hint)


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _message_decoder(kind: type) -> Convert:
    hints = fields(kind)
    present_only = {n for n, h in hints.items() if typing.get_origin(h) is types.UnionType}
    decoders = {name: _decoder(hint) for name, hint in hints.items()}

    def decode_message(message: Any) -> Any:
        return kind(
            **{
                name: None
                if name in present_only and not message.HasField(name)
                else decoder(getattr(message, name))
                for name, decoder in decoders.items()
            }
        )

    return decode_message


def every_message() -> list[type]:
    """The dataclasses that travel: those of `messages`, and the specs and ids in them."""
    classes = (value for value in vars(messages).values() if isinstance(value, type))
    own = (kind for kind in classes if kind.__module__.startswith(messages.__name__))
    travelling = [kind for kind in own if dataclasses.is_dataclass(kind)]
    return [*travelling, layout.ParamSpec, layout.StillSpec, layout.ModelSpec, BatchKey, PushId]


# --- numbers of param groups ---------------------------------------------------------------


def pack_hypers(values: messages.Hypers) -> messages.GroupHypers:
    def pack(value: messages.Hyper) -> messages.HyperValue:
        if isinstance(value, tuple):
            return messages.HyperValue(tuple(map(float, value)), is_tuple=True)
        is_bool, is_int = isinstance(value, bool), isinstance(value, int)
        return messages.HyperValue((float(value),), is_bool=is_bool, is_int=is_int and not is_bool)

    return messages.GroupHypers({name: pack(value) for name, value in values.items()})


def unpack_hypers(group: messages.GroupHypers) -> messages.Hypers:
    """Raises InvalidMessage for a value that has no number, or several and is no tuple, and for an
    int that is NaN or infinite.
    """

    def unpack(name: str, value: messages.HyperValue) -> messages.Hyper:
        if value.is_tuple:
            return value.numbers
        if len(value.numbers) != 1:
            raise InvalidMessage(f"{name} has {len(value.numbers)} numbers; one was expected")
        number = value.numbers[0]
        if value.is_bool:
            return bool(number)
        if value.is_int and not isfinite(number):
            raise InvalidMessage(f"{name} is {number}; an int was expected")
        return int(number) if value.is_int else number

    return {name: unpack(name, value) for name, value in group.values.items()}


# --- errors --------------------------------------------------------------------------------


def encode_error(error: HubringError) -> bytes:
    kind = type(error).__name__
    return encode(messages.ErrorInfo(kind, error.fact, error.who, error.todo))


def decode_error(data: bytes) -> HubringError:
    info = decode(messages.ErrorInfo, data)
    return make_error(info.kind, info.fact, who=info.who, todo=info.todo)


def make_error(kind: str, fact: str, *, who: str = "", todo: str = "") -> HubringError:
    """The error named `kind`; of a kind that this version does not know, a Fatal's next of kin."""
    return KINDS.get(kind, KINDS["RunEnded"])(fact, who=who, todo=todo)


# --- services ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A method of a service: its messages, and whether both sides stream."""

    request: type
    answer: type
    streams: bool


@cache
def methods(service: str) -> Mapping[str, Method]:
    """Name -> Method, as the .proto file of `service` says."""
    kinds = {kind.__name__: kind for kind in every_message()}
    by_name = coordinator_pb2.DESCRIPTOR.services_by_name
    return {
        method.name: Method(
            kinds[method.input_type.name], kinds[method.output_type.name], method.client_streaming
        )
        for method in by_name[service].methods
    }


# --- fields by hand, for messages whose payload must not be copied ---------------------------


class Field(typing.NamedTuple):
    tag: int
    value: memoryview


_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def split_fields(data: bytes | memoryview) -> list[Field]:
    """The top-level fields of a protobuf message, as views. Varints are passed over.

    Raises InvalidMessage where `data` is no protobuf.
    """
    view, at, found = memoryview(data), 0, []
    while at < len(view):
        tag, at = _varint(view, at)
        at, stop = _extent(view, at, tag & 7)
        if stop > len(view):
            raise InvalidMessage(f"a field ends {stop - len(view)} bytes past its message")
        found.append(Field(tag, view[at:stop]))
        at = stop
    return found


def _extent(view: memoryview, at: int, wire_type: int) -> tuple[int, int]:
    """Where the value that starts at `at` begins and stops."""
    if wire_type == _LENGTH:
        length, at = _varint(view, at)
        return at, at + length
    if wire_type == _VARINT:
        return at, _varint(view, at)[1]
    if wire_type in {_FIXED64, _FIXED32}:
        return at, at + (8 if wire_type == _FIXED64 else 4)
    raise InvalidMessage(f"wire type {wire_type} is not protobuf's")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(view) and shift < 64:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise InvalidMessage("a number does not end")
