"""What a record does to tensors, and what is refused so that none ever fails to be applied."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from server.hosts import RUN, Sender, hypers

from hubring_common import wire
from hubring_common.errors import InvalidMessage, UsageError
from hubring_common.ids import BatchKey, PushId
from hubring_common.layout import ModelSpec, ParamSpec, plan
from hubring_common.messages import SeedHeader
from hubring_common.optimizers import ELEMENTWISE
from hubring_server.arena import Payload
from hubring_server.machine.messages import (
    Members,
    MembersRecord,
    Push,
    PushRecord,
    Seed,
    SeedRecord,
)
from hubring_server.weights import ShardWeights, is_finite, present_of, try_step, views

MIXED = ModelSpec(
    (
        ParamSpec("wide", (40,), (1,), "float64", 0),
        ParamSpec("narrow", (3000,), (1,), "float32", 0),
        ParamSpec("half", (20,), (1,), "bfloat16", 1),
    ),
    "AdamW",
)


def pushed(weights: ShardWeights, present, value: float, groups=None) -> Payload:
    """A gradient of `value` for the present parameters, and of NaN for the others."""
    data = torch.zeros_like(weights.data)
    for block, flat in zip(weights._blocks, views(weights._blocks, data), strict=True):
        for part in block.parts:
            flat[part.start : part.stop] = value if part.param in present else float("nan")
    sender = Sender(weights, groups=hypers("AdamW") * 2 if groups is None else groups)
    return Payload(sender.header([], present), data)


def apply(weights: ShardWeights, payload: Payload) -> None:
    push = Push(PushId(1, 0), 0, frozenset({BatchKey(0, 0)}), 7, 1)
    weights.apply(PushRecord(9, (push,)), {1: payload})


# --- presence -----------------------------------------------------------------------------------


@given(st.frozensets(st.integers(0, 30)))
def test_presence_is_a_bit_a_parameter(present):
    bits = sum(1 << i for i in present).to_bytes(4, "little")
    assert present_of(bits, 31) == present
    assert present_of(bits.rstrip(b"\0"), 31) == present
    if present:
        with pytest.raises(InvalidMessage, match=f"past parameter {max(present) - 1}"):
            present_of(bits, max(present))


# --- finiteness ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([], True),
        ([0.0, -1.0], True),
        ([3e38, 3e38], True),  # the sum is Inf
        ([float("inf"), float("-inf")], False),
        ([0.0, float("nan")], False),
        ([float("inf"), 0.0], False),
    ],
)
def test_finite_means_every_element(values, finite):
    assert is_finite(torch.tensor(values)) is finite


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("bad", range(3))
def test_the_parameter_that_is_not_finite_is_named_in_every_dtype(bad, shards):
    layout = plan(MIXED, shards, slice_bytes=1024)
    found = set()
    for shard in range(shards):
        weights = ShardWeights(layout, shard)
        payload = pushed(weights, {0, 1, 2} - {bad}, 1.0)
        assert weights.first_not_finite(payload.data, frozenset({0, 1, 2} - {bad})) == ""
        found.add(weights.first_not_finite(payload.data, frozenset(range(3))))
    assert found - {""} == {MIXED.params[bad].name}


# --- records ------------------------------------------------------------------------------------


def test_first_weights_replace_everything_and_members_nothing():
    weights = ShardWeights(plan(MIXED, 1), 0)
    data = torch.arange(weights.nbytes, dtype=torch.int64).to(torch.uint8)
    payload = Payload(SeedHeader(RUN, 0, 1, weights.nbytes, 7), data.clone())
    weights.apply(SeedRecord(2, Seed(1, 7, 4)), {4: payload})
    weights.apply(MembersRecord(3, Members(1, frozenset({1}))), {})
    assert torch.equal(weights.data, data)
    payload.data.zero_()
    assert torch.equal(weights.data, data), "the payload's buffer serves others now"


def test_only_present_parameters_are_looked_at():
    weights = ShardWeights(plan(MIXED, 1), 0)
    apply(weights, pushed(weights, {0, 2}, 1.0))
    wide, narrow, half = (flat[part] for flat, part in parts(weights))
    assert narrow.eq(0).all()
    assert wide.ne(0).all()
    assert half.ne(0).all()


def parts(weights):
    """(the block's tensor, where the parameter lies in it), in the spec's order."""
    found = {}
    flats = views(weights._blocks, weights.data)
    for block, flat in zip(weights._blocks, flats, strict=True):
        for part in block.parts:
            found[part.param] = (flat, slice(part.start, part.stop))
    return [found[param] for param in sorted(found)]


def test_a_push_of_nothing_counts_no_step():
    weights, other = (ShardWeights(plan(MIXED, 1), 0) for _ in range(2))
    for each in (weights, other):
        apply(each, pushed(each, {0, 1, 2}, 0.3))
    apply(weights, pushed(weights, (), float("nan"), groups=()))
    for each in (weights, other):
        apply(each, pushed(each, {0, 1, 2}, 0.7))
    assert torch.equal(weights.data, other.data)


def test_a_snapshot_is_a_copy():
    weights, again = (ShardWeights(plan(MIXED, 1), 0) for _ in range(2))
    apply(weights, pushed(weights, {0, 1}, 0.3))
    state, then = weights.snapshot(), weights.data.clone()
    apply(weights, pushed(weights, {0, 1, 2}, 0.7))
    again.restore(state)
    assert torch.equal(again.data, then)
    apply(again, pushed(again, {0, 1, 2}, 0.7))
    assert torch.equal(again.data, weights.data)
    assert torch.equal(state["weights"], then)


# --- numbers that torch cannot step with ---------------------------------------------------------


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_what_torch_has_by_default_can_be_stepped(kind):
    weights = ShardWeights(plan(ModelSpec(MIXED.params, kind), 1), 0)
    weights.check_hypers(pushed(weights, {1}, 1.0, hypers(kind) * 2).header)


@pytest.mark.parametrize(
    ("kind", "numbers", "shown"),
    [
        ("SGD", {"maximize": 0}, "'maximize': 0"),
        ("SGD", {"nesterov": 1, "momentum": 0.9}, "'nesterov': 1"),
        ("AdamW", {"amsgrad": 1}, "'amsgrad': 1"),
    ],
)
def test_numbers_that_only_a_step_trips_over_are_refused_before_one(kind, numbers, shown):
    weights = ShardWeights(plan(ModelSpec(MIXED.params, kind), 1), 0)
    good, bad = hypers(kind), hypers(kind, **numbers)
    weights.check_hypers(pushed(weights, {0}, 1.0, good * 2).header)
    for groups in (good + bad, bad + good):
        with pytest.raises(UsageError, match=f"{kind} cannot step with .*{shown}"):
            weights.check_hypers(pushed(weights, {0}, 1.0, groups).header)
    weights.check_hypers(pushed(weights, (), 1.0, bad * 2).header)


def test_numbers_that_make_a_step_divide_by_zero_are_refused():
    (numbers,) = map(wire.unpack_hypers, hypers("Adamax"))
    with pytest.raises(UsageError, match="Adamax cannot step"):
        try_step("Adamax", [{**numbers, "betas": (1.0, 1.0)}])


def test_a_slot_that_torch_makes_at_the_first_step_cannot_be_asked_for_later():
    weights = ShardWeights(plan(MIXED, 1), 0)
    late = hypers("AdamW", amsgrad=True) * 2
    weights.check_hypers(pushed(weights, {0}, 1.0, late).header)
    apply(weights, pushed(weights, {0}, 1.0))
    with pytest.raises(UsageError, match="amsgrad was switched on after the first step"):
        weights.check_hypers(pushed(weights, {0}, 1.0, late).header)
