"""The layout: every element in one place, aligned, balanced, the same everywhere."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubring_common.layout import (
    ALIGN,
    ITEM_BYTES,
    SLICE_BYTES,
    ModelSpec,
    ParamSpec,
    StillSpec,
    padded,
    plan,
)

SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float32", "float64", "float16", "bfloat16"])


def param(index, shape, dtype="float32", group=0):
    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    return ParamSpec(f"p{index}", shape, strides, dtype, group)


@st.composite
def specs(draw):
    entries = draw(st.lists(st.tuples(SHAPES, DTYPES, st.integers(0, 2)), min_size=1, max_size=12))
    return ModelSpec(tuple(param(i, *entry) for i, entry in enumerate(entries)), "SGD")


PLANS = st.builds(
    lambda spec, shards, blocks: plan(spec, shards, blocks * 128),
    specs(),
    st.integers(1, 5),
    st.integers(1, 60),
)
many = settings(max_examples=80, deadline=None)


@many
@given(PLANS)
def test_slices_tile_each_segment(layout):
    for index, segment in enumerate(layout.segments):
        pieces = sorted((s.start, s.stop) for s in layout.slices if s.segment == index)
        at = 0
        for start, stop in pieces:
            assert start == at < stop
            assert start % ALIGN == stop % ALIGN == 0
            at = stop
        assert at == segment.elements


@many
@given(PLANS)
def test_every_element_of_every_parameter_lies_in_one_part(layout):
    counts = dict.fromkeys(range(len(layout.spec.params)), 0)
    for shard in range(layout.shards):
        for block in layout.blocks(shard):
            at = 0
            for part in block.parts:
                assert part.start == at < part.stop
                counts[part.param] += part.stop - part.start
                at = part.stop
            assert at == block.elements
    for index, spec in enumerate(layout.spec.params):
        assert 0 <= counts[index] - spec.numel < ALIGN


@many
@given(PLANS)
def test_a_shards_bytes_follow_one_another_and_are_aligned(layout):
    for shard in range(layout.shards):
        at = 0
        for piece in layout.of_shard(shard):
            assert piece.offset_bytes == at
            assert at % ITEM_BYTES[layout.segments[piece.segment].master] == 0
            at += layout.slice_bytes(piece)
        assert at == layout.shard_bytes(shard) == sum(b.nbytes for b in layout.blocks(shard))


@many
@given(specs(), st.integers(1, 5), st.integers(1, 60))
def test_slices_are_small_and_whole_tensors_share_them_while_they_fit(spec, shards, blocks):
    limit = blocks * 128
    layout = plan(spec, shards, limit)
    for piece in layout.slices:
        assert layout.slice_bytes(piece) <= limit
        for slot in layout.segments[piece.segment].slots:
            item = ITEM_BYTES[layout.segments[piece.segment].master]
            is_cut = slot.start < piece.start < slot.stop or slot.start < piece.stop < slot.stop
            if is_cut:
                assert (slot.stop - slot.start) * item > limit, "a small tensor was cut"
                assert piece.params == (slot.param,), "a cut tensor shares its slices"
    for index, segment in enumerate(layout.segments):
        pieces = sorted((s for s in layout.slices if s.segment == index), key=lambda s: s.start)
        slots = {slot.start: slot for slot in segment.slots if slot.stop > slot.start}
        for piece, after in pairwise(pieces):
            item, following = ITEM_BYTES[segment.master], slots.get(after.start)
            if piece.start in slots and following and slots[piece.start].stop <= piece.stop:
                together = (following.stop - piece.start) * item
                assert together > limit, "the next tensor had room in the slice"


@many
@given(PLANS)
def test_shards_are_balanced_to_one_slice(layout):
    sizes = [layout.shard_bytes(shard) for shard in range(layout.shards)]
    largest = max(map(layout.slice_bytes, layout.slices), default=0)
    assert max(sizes) - min(sizes) <= largest


@many
@given(PLANS)
def test_a_slice_names_the_parameters_that_it_holds_some_of(layout):
    owners = [
        np.repeat([slot.param for slot in slots], [slot.stop - slot.start for slot in slots])
        for slots in (segment.slots for segment in layout.segments)
    ]
    for piece in layout.slices:
        assert list(piece.params) == sorted(set(owners[piece.segment][piece.start : piece.stop]))


@many
@given(PLANS, st.data())
def test_touched_slices_are_those_of_present_parameters(layout, data):
    everything = frozenset(range(len(layout.spec.params)))
    present = data.draw(st.frozensets(st.sampled_from(sorted(everything))))
    for shard in range(layout.shards):
        pieces = layout.of_shard(shard)
        wanted = tuple(piece for piece in pieces if present & set(piece.params))
        assert layout.touched(shard, present) == wanted
        assert layout.touched(shard, everything) == pieces


@many
@given(PLANS)
def test_a_segment_is_one_group_and_dtype_in_the_models_order(layout):
    seen = []
    for segment in layout.segments:
        for slot in segment.slots:
            param = layout.spec.params[slot.param]
            assert (param.group, param.dtype) == (segment.group, segment.dtype)
            assert segment.master == ("float64" if param.dtype == "float64" else "float32")
            assert (slot.start % ALIGN, slot.stop) == (0, slot.start + padded(param.numel))
        assert [slot.param for slot in segment.slots] == sorted(s.param for s in segment.slots)
        seen += [slot.param for slot in segment.slots]
    assert sorted(seen) == list(range(len(layout.spec.params)))


@many
@given(PLANS)
def test_blocks_are_the_shards_bytes_a_segment_at_a_time(layout):
    for shard in range(layout.shards):
        at = 0
        for block in layout.blocks(shard):
            assert block.offset_bytes == at
            assert at % (ALIGN * ITEM_BYTES[block.master]) == 0, "torch's vectors need this"
            assert {layout.spec.params[part.param].group for part in block.parts} == {block.group}
            at += block.nbytes


@many
@given(specs(), st.integers(1, 5), st.integers(1, 60))
def test_the_same_input_gives_the_same_plan(spec, shards, blocks):
    again = ModelSpec(tuple(replace(p) for p in spec.params), spec.optimizer)
    assert plan(spec, shards, blocks * 128) == plan(again, shards, blocks * 128)


def test_a_large_model_is_laid_out_fast_and_evenly():
    rows = [(50_000, 4096), *[(4096, 4096), (4096, 11_008), (4096,)] * 32, (), (0, 7), (3,)]
    spec = ModelSpec(tuple(param(i, shape, "bfloat16") for i, shape in enumerate(rows)), "AdamW")
    layout = plan(spec, 7)
    sizes = [layout.shard_bytes(shard) for shard in range(7)]
    assert sum(sizes) == sum(padded(p.numel) for p in spec.params) * 4
    assert max(sizes) - min(sizes) <= SLICE_BYTES
    assert max(map(layout.slice_bytes, layout.slices)) == SLICE_BYTES
    assert {piece.shard for piece in layout.slices} == set(range(7))


def test_a_plan_does_not_change_from_version_to_version():
    spec = ModelSpec(
        (param(0, (100, 100)), param(1, (100,)), param(2, (), "float64"), param(3, (7,), group=1)),
        "Adam",
    )
    layout = plan(spec, 2)
    assert spec.digest == 0xB71607E4B8B30064
    assert [(s.segment, s.start, s.stop, s.shard, s.offset_bytes) for s in layout.slices] == [
        (1, 0, 16, 0, 0),
        (0, 0, 1264, 0, 128),
        (0, 2528, 3792, 0, 5184),
        (0, 5056, 6320, 0, 10240),
        (0, 7584, 8848, 0, 15296),
        (0, 1264, 2528, 1, 0),
        (0, 3792, 5056, 1, 5056),
        (0, 6320, 7584, 1, 10112),
        (0, 8848, 10000, 1, 15168),
        (0, 10000, 10112, 1, 19776),
        (2, 0, 16, 1, 20224),
    ]


def test_a_small_model_still_uses_every_shard():
    layout = plan(ModelSpec(tuple(param(i, (64, 64)) for i in range(8)), "SGD"), 4)
    assert {layout.shard_bytes(shard) for shard in range(4)} == {2 * 64 * 64 * 4}


def test_the_largest_slices_are_dealt_first():
    sizes = ((32,), (32,), (64,))
    spec = ModelSpec(tuple(param(i, size, group=i) for i, size in enumerate(sizes)), "SGD")
    layout = plan(spec, 2, 256)
    assert [layout.shard_bytes(shard) for shard in range(2)] == [256, 256]


def test_a_run_has_a_shard():
    with pytest.raises(ValueError, match="at least one shard"):
        plan(ModelSpec((), "SGD"), 0)


BASE = ModelSpec((param(0, (10, 512)), param(1, (10,))), "SGD")


FIRST, SECOND = BASE.params
DIFFERENCES = [
    ((param(0, (10, 256)), SECOND), "p0 is [10, 512] here but [10, 256] on the cluster"),
    ((param(0, (10, 512), "float64"), SECOND), "p0's dtype is float32 here but float64 on"),
    ((replace(FIRST, stride=(1, 10)), SECOND), "p0's stride is [512, 1] here but [1, 10] on"),
    ((FIRST, param(1, (10,), group=1)), "p1's group is 0 here but 1 on the cluster"),
    ((FIRST, param(2, (10,))), "the parameter is p1 here but p2 on the cluster"),
    ((FIRST,), "p1 is only here (2 parameters here, 1 on the cluster)"),
    ((*BASE.params, param(2, (1,))), "p2 is only on the cluster (2 parameters here, 3 on"),
]


@pytest.mark.parametrize(("params", "words"), DIFFERENCES)
def test_the_first_difference_is_named(params, words):
    other = ModelSpec(params, "SGD")
    assert BASE.difference(other).startswith(words)
    assert BASE.digest != other.digest


def test_another_optimizer_is_a_difference():
    other = ModelSpec(BASE.params, "Adam")
    words = "the optimizer is SGD here but Adam on the cluster"
    assert BASE.difference(other) == words
    assert BASE.digest != other.digest


STILL = (StillSpec("mask", (3, 3), "bool", 9), StillSpec("steps", (), "int64", 8))
STILL_DIFFERENCES = [
    ((replace(STILL[0], shape=(9,)), STILL[1]), "mask is [3, 3] here but [9] on the cluster"),
    ((STILL[0], replace(STILL[1], dtype="uint64")), "steps's dtype is int64 here but uint64 on"),
    ((replace(STILL[0], nbytes=18), STILL[1]), "mask's nbytes is 9 here but 18 on the cluster"),
    (STILL[::-1], "the frozen parameter or buffer is mask here but steps on the cluster"),
    (STILL[:1], "steps is only here (2 frozen parameters or buffers here, 1 on the cluster)"),
    ((), "mask is only here (2 frozen parameters or buffers here, 0 on the cluster)"),
]


@pytest.mark.parametrize(("still", "words"), STILL_DIFFERENCES)
def test_the_first_still_tensor_that_differs_is_named(still, words):
    here, other = replace(BASE, still=STILL), replace(BASE, still=still)
    assert here.difference(other).startswith(words)
    assert here.digest != other.digest


@many
@given(st.lists(st.integers(0, 50), max_size=4), st.integers(1, 7))
def test_still_bytes_are_dealt_in_ranges_of_equal_length(sizes, shards):
    still = tuple(StillSpec(f"s{i}", (n,), "uint8", n) for i, n in enumerate(sizes))
    layout = plan(replace(BASE, still=still), shards)
    ranges = [layout.still_range(shard) for shard in range(shards)]
    assert [0, *(stop for _, stop in ranges)] == [*(start for start, _ in ranges), sum(sizes)]
    lengths = [stop - start for start, stop in ranges]
    assert max(lengths) - min(lengths) <= 1


def test_equal_specs_do_not_differ():
    same = ModelSpec((param(0, (10, 512)), param(1, (10,))), "SGD")
    assert BASE.difference(same) == ""
    assert BASE.digest == same.digest
