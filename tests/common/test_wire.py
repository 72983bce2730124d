"""Messages and protobuf: the same fields on both sides, whole round trips, only our errors."""

import dataclasses
import types
import typing
from enum import Enum
from math import isfinite, isnan

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from hubring_common import errors, messages, wire
from hubring_common.errors import HubringError, InvalidMessage
from hubring_proto.v1 import common_pb2, coordinator_pb2, shard_pb2

STREAMED = {"Frame", "SeedRequest", "PushRequest", "PushReply", "PullReply"}
"""Written and read by hand, in carrier/frames.py."""
ONE_OF = {messages.FromMember, messages.ToMember}
"""A oneof: one of their fields is set."""
KINDS = wire.every_message()
ENUMS = [k for k in vars(messages).values() if isinstance(k, type) and issubclass(k, Enum)]


BOUNDS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
"""What a number's field in the .proto can hold."""


def values(hint, field):
    """Whatever a field of this type may hold; `field` is its namesake's."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return st.none() | values(args[0], field)
    if origin is tuple:
        return st.lists(values(args[0], field), max_size=3).map(tuple)
    if origin is not None:
        inner = values(args[1], field.message_type.fields_by_name["value"])
        return st.dictionaries(st.text(max_size=5), inner, max_size=3)
    plain = {
        int: st.integers(*BOUNDS.get(field.type, ())),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=10),
        bytes: st.binary(max_size=10),
        bool: st.booleans(),
    }
    if hint in plain:
        return plain[hint]
    return st.sampled_from(hint) if issubclass(hint, Enum) else instances(hint)


def instances(kind):
    by_name = wire.message_class(kind).DESCRIPTOR.fields_by_name
    hints = wire.fields(kind)
    if kind in ONE_OF:
        inner = {name: values(typing.get_args(h)[0], by_name[name]) for name, h in hints.items()}
        return st.one_of(
            [v.map(lambda value, name=name: kind(**{name: value})) for name, v in inner.items()]
        )
    return st.builds(kind, **{name: values(hint, by_name[name]) for name, hint in hints.items()})


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_a_dataclass_has_the_fields_of_its_message(kind):
    message = wire.message_class(kind)
    assert set(wire.fields(kind)) == {field.name for field in message.DESCRIPTOR.fields}


def test_every_message_has_its_dataclass():
    modules = (common_pb2, coordinator_pb2, shard_pb2)
    names = {name for module in modules for name in module.DESCRIPTOR.message_types_by_name}
    assert names == {kind.__name__ for kind in KINDS} | STREAMED


@pytest.mark.parametrize("enum", ENUMS, ids=lambda e: e.__name__)
def test_an_enum_has_the_values_of_its_namesake(enum):
    modules = (common_pb2, coordinator_pb2, shard_pb2)
    theirs = next(getattr(m, enum.__name__) for m in modules if hasattr(m, enum.__name__))
    prefix = "".join("_" + c if c.isupper() else c for c in enum.__name__).upper().lstrip("_")
    expected = {f"{prefix}_{member.name}": member.value for member in enum}
    assert dict(theirs.items()) == {f"{prefix}_UNSPECIFIED": 0, **expected}


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@given(data=st.data())
def test_a_message_comes_back_as_it_went(kind, data):
    value = data.draw(instances(kind))
    assert wire.decode(kind, wire.encode(value)) == value


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@given(garbage=st.binary(max_size=60))
def test_garbage_is_refused_or_read_and_never_anything_else(kind, garbage):
    try:
        value = wire.decode(kind, garbage)
    except InvalidMessage:
        return
    assert isinstance(value, kind)


def test_a_field_of_a_later_minor_version_is_passed_over():
    later = wire.encode(messages.Done()) + b"\xf2\x7f\x03abc"
    assert wire.decode(messages.Done, later) == messages.Done()


def test_a_field_of_a_later_minor_version_is_passed_over_where_it_is_nested():
    span = wire.encode(messages.Span(1, 2, 3)) + b"\xf2\x7f\x03abc"
    taken = b"\x08\x01" + b"\x12" + bytes([len(span)]) + span
    assert wire.decode(messages.Taken, taken).spans == (messages.Span(1, 2, 3),)


def test_what_is_absent_is_none_and_what_is_empty_is_not():
    assert wire.decode(messages.Heartbeat, b"").worker is None
    beat = messages.Heartbeat(worker=messages.WorkerProgress(loss=0.0))
    assert wire.decode(messages.Heartbeat, wire.encode(beat)) == beat


def test_a_loss_that_is_not_a_number_stays_so():
    progress = wire.decode(messages.WorkerProgress, wire.encode(messages.WorkerProgress()))
    assert isnan(progress.loss)


def test_a_lone_surrogate_does_not_keep_a_last_word_back():
    leave = messages.Leave(1, "ScriptFailed", "no file \udcff.csv", metrics={"a\ud800": 1.0})
    back = wire.decode(messages.Leave, wire.encode(leave))
    assert (back.why, dict(back.metrics)) == ("no file ?.csv", {"a?": 1.0})


def test_an_enum_value_of_a_later_version_is_refused():
    with pytest.raises(InvalidMessage, match="Taken"):
        wire.decode(messages.Taken, coordinator_pb2.Taken(state=99).SerializeToString())


BOOLS = st.booleans()
HYPERS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
)


@settings(deadline=None)
@given(HYPERS)
def test_the_numbers_of_a_group_keep_value_and_type(hypers):
    back = wire.unpack_hypers(wire.pack_hypers(hypers))
    assert back == hypers
    assert {k: type(v) for k, v in back.items()} == {k: type(v) for k, v in hypers.items()}


def test_a_group_value_without_a_number_is_refused():
    group = messages.GroupHypers({"lr": messages.HyperValue()})
    with pytest.raises(InvalidMessage, match="lr has 0 numbers"):
        wire.unpack_hypers(group)


@settings(deadline=None)
@given(st.builds(messages.HyperValue, st.tuples(st.floats()), BOOLS, BOOLS, BOOLS))
def test_whatever_number_comes_for_a_group_only_our_error_is_raised(value):
    try:
        (back,) = wire.unpack_hypers(messages.GroupHypers({"foreach": value})).values()
    except InvalidMessage:
        assert value.is_int
        assert not isfinite(value.numbers[0])
        return
    assert isinstance(back, (bool, int, float, tuple))


@pytest.mark.parametrize("kind", errors.leaves(), ids=lambda k: k.__name__)
def test_an_error_comes_back_as_it_went(kind):
    error = wire.decode_error(wire.encode_error(kind("a fact", who="worker-3", todo="do this")))
    assert type(error) is kind
    assert (error.fact, error.who, error.todo) == ("a fact", "worker-3", "do this")


def test_an_error_of_an_unknown_kind_is_still_one_of_ours():
    assert isinstance(wire.make_error("FromTheFuture", "a fact"), HubringError)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_fields_of_garbage(garbage):
    try:
        fields = wire.split_fields(garbage)
    except InvalidMessage:
        return
    assert sum(len(field.value) for field in fields) <= len(garbage)


def test_every_dataclass_is_frozen():
    kinds = [kind for kind in KINDS if dataclasses.is_dataclass(kind)]
    assert all(kind.__dataclass_params__.frozen for kind in kinds)
