"""Spans against plain torch: the same weights, whatever the shards, shapes and absent gradients."""

import weakref
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from common.sharded import (
    CONFIGURATIONS,
    STEPS,
    Plain,
    Shards,
    both,
    difference,
    padded_flat,
    random_tensors,
    spec_of,
    without,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hubring_common.errors import ModelMismatch, UsageError
from hubring_common.layout import padded, plan
from hubring_common.optimizers import ELEMENTWISE, FUSED, hypers_of
from hubring_common.spans import SPAN_BYTES, SpanOptimizer

ROUNDED_OTHERWISE = FUSED - {"SGD"}
"""torch's fused and single-tensor kernels of these differ in the last bit of some elements."""
FUSED_BOUND = 5e-7
ABSENT_EACH_THIRD = frozenset({1, 3, 6})


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_spans_step_as_plain_torch_does(name, shards):
    spans, plain, gradients = both(name, shards)
    for step in range(STEPS):
        # Already the first gradients lack some: torch's fused SGD must get over it.
        grads = without(gradients(), ABSENT_EACH_THIRD if step % 3 == 0 else ())
        plain.schedule(step)
        spans.step(grads, hypers_of(plain.optimizer))
        plain.step(grads)
    bound = FUSED_BOUND if CONFIGURATIONS[name][0] in ROUNDED_OTHERWISE else 0
    assert difference(spans, plain) <= bound


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("name", [n for n, (kind, _) in CONFIGURATIONS.items() if kind in FUSED])
def test_fused_spans_have_the_bits_of_fused_torch(name, shards):
    spans, plain, gradients = both(name, shards, fused=True)
    for step in range(STEPS):
        grads = without(gradients(), ABSENT_EACH_THIRD if step % 3 == 2 else ())
        plain.schedule(step)
        spans.step(grads, hypers_of(plain.optimizer))
        plain.step(padded_flat(grads))
    assert difference(spans, plain) == 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_dtypes_of_a_model_may_differ(name):
    fused = CONFIGURATIONS[name][0] in ROUNDED_OTHERWISE
    spans, plain, gradients = both(name, 2, dtypes=("float64", "float32", "bfloat16"), fused=fused)
    assert {w.dtype for weights in spans.weights for w in weights} == {torch.float32, torch.float64}
    for step in range(10):
        grads = without(gradients(), ABSENT_EACH_THIRD if step % 3 == 2 else ())
        spans.step(grads, hypers_of(plain.optimizer))
        plain.step(padded_flat(grads) if fused else grads)
    assert difference(spans, plain) == 0


shapes_of_a_group = st.lists(
    st.lists(st.integers(0, 12), max_size=3).map(tuple), min_size=1, max_size=5
)


@given(
    shapes=st.lists(shapes_of_a_group, min_size=1, max_size=3),
    name=st.sampled_from(sorted(CONFIGURATIONS)),
    shards=st.integers(1, 4),
    slice_bytes=st.sampled_from([64, 256, 4096]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_no_shape_no_cut_and_no_absence_changes_a_bit(shapes, name, shards, slice_bytes, data):
    kind, options = CONFIGURATIONS[name]
    fused = kind in ROUNDED_OTHERWISE
    spec = spec_of(shapes, kind)
    generator = torch.Generator().manual_seed(7)
    params = random_tensors(spec, generator)
    how = {"fused": True} if fused else {"foreach": False}
    plain = Plain(shapes, kind, options | how, padded_flat(params) if fused else params)
    spans = Shards(spec, params, shards, slice_bytes)
    absences = st.lists(st.sets(st.sampled_from(range(len(params)))), min_size=3, max_size=6)
    for absent in data.draw(absences):
        grads = without(random_tensors(spec, generator), absent)
        spans.step(grads, hypers_of(plain.optimizer))
        plain.step(padded_flat(grads) if fused else grads)
    assert difference(spans, plain) == 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_restored_optimizer_continues_bit_for_bit(name):
    spans, plain, gradients = both(name, 2)
    groups = hypers_of(plain.optimizer)
    for step in range(6):
        # Parameter 2 gets its first gradient after the snapshot.
        spans.step(without(gradients(), {2, *ABSENT_EACH_THIRD} if step % 3 else {2}), groups)
    saved = spans.snapshot()
    kept = deepcopy(saved)
    params = [flat.reshape(p.shape) for flat, p in zip(spans.gather(), plain.params, strict=True)]
    copy = Shards(spans.layout.spec, params, 2)
    for optimizer, state in zip(copy.optimizers, saved, strict=True):
        optimizer.restore(state)
    assert_same(copy.snapshot(), saved)
    for step in range(6):
        grads = without(gradients(), {0, 4} if step % 3 == 1 else ())
        spans.step(grads, groups)
        copy.step(grads, groups)
    assert all(map(torch.equal, copy.gather(), spans.gather()))
    assert_same(copy.snapshot(), spans.snapshot())
    assert_same(saved, kept)  # neither run wrote into the snapshot


def assert_same(ours, theirs):
    """Two snapshots of all shards are equal, bit for bit."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.kind == other.kind
        for a, b in zip(one.blocks, other.blocks, strict=True):
            assert a.spans == b.spans
            assert a.vectors.keys() == b.vectors.keys()
            assert all(torch.equal(a.vectors[name], b.vectors[name]) for name in a.vectors)


@pytest.mark.parametrize("kind", ["AdamW", "NAdam"])
def test_the_number_of_threads_changes_no_bit(kind, torch_threads):
    shapes = (((500, 300), (77, 1001)),)
    spec = spec_of(shapes, kind)
    results = []
    for threads in (1, 2):
        torch_threads(threads)
        generator = torch.Generator().manual_seed(7)
        spans = Shards(spec, random_tensors(spec, generator), threads, slice_bytes=1 << 18)
        for _ in range(3):
            spans.step(random_tensors(spec, generator), default_hypers(kind))
        results.append(spans.gather())
    assert all(map(torch.equal, *results))


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def default_hypers(kind, **options):
    return hypers_of(ELEMENTWISE[kind]([torch.empty(1)], **options))


def one_block(kind, elements=(16, 16, 32)):
    """A SpanOptimizer on one block of parameters with these many elements, and its weights."""
    layout = plan(spec_of([[(n,) for n in elements]], kind), 1)
    weights = torch.ones(sum(map(padded, elements)))
    return SpanOptimizer(kind, layout.blocks(0), [weights]), weights


def ranges(optimizer):
    (block,) = optimizer.snapshot().blocks
    return [(span.start, span.stop) for span in block.spans]


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_a_fused_span_is_a_whole_block_and_others_fit_the_cache(kind):
    elements = 3 * SPAN_BYTES // 4 - 1000
    optimizer, _ = one_block(kind, [elements])
    piece = SPAN_BYTES // 4
    starts = [0] if kind in FUSED else [0, piece, 2 * piece]
    end = padded(elements)
    assert ranges(optimizer) == list(zip(starts, [*starts[1:], end], strict=True))


def test_an_absent_parameter_splits_spans_for_good_and_only_at_its_edges():
    optimizer, weights = one_block("AdamW")
    grads, groups = [torch.ones(64)], default_hypers("AdamW")
    optimizer.step(grads, frozenset({0, 1, 2}), groups)
    assert ranges(optimizer) == [(0, 64)]
    optimizer.step(grads, frozenset({0, 1, 9}), groups)
    assert ranges(optimizer) == [(0, 32), (32, 64)]
    before = weights.clone()
    optimizer.step(grads, frozenset({0, 1, 2}), groups)
    assert (weights != before).all()
    assert ranges(optimizer) == [(0, 32), (32, 64)]
    (block,) = optimizer.snapshot().blocks
    assert [span.scalars["step"] for span in block.spans] == [3, 2]


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_a_push_with_nothing_present_does_nothing(kind):
    optimizer, weights = one_block(kind)
    optimizer.step([torch.ones(64)], frozenset({0, 1, 2}), default_hypers(kind))
    before, saved = weights.clone(), optimizer.snapshot()
    optimizer.step([torch.full((64,), torch.nan)], frozenset({9}), default_hypers(kind))
    assert torch.equal(weights, before)
    assert_same([optimizer.snapshot()], [saved])


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_a_gradient_is_neither_changed_nor_kept(kind):
    optimizer, _ = one_block(kind)
    array = np.ones(64, dtype=np.float32)
    alive = weakref.ref(array)
    for _ in range(3):
        optimizer.step([torch.from_numpy(array)], frozenset({0, 2}), default_hypers(kind))
    assert (array == 1).all()
    del array
    assert alive() is None


def test_momentum_may_be_switched_on_late_for_sgd():
    spans, plain, gradients = both("SGD", 2)
    for step in range(10):
        grads = without(gradients(), ABSENT_EACH_THIRD if step % 3 == 0 else ())
        for group in plain.optimizer.param_groups:
            group["momentum"] = 0.9 if step > 5 else 0
        spans.step(grads, hypers_of(plain.optimizer))
        plain.step(grads)
    assert difference(spans, plain) == 0


@pytest.mark.parametrize(
    ("kind", "late", "slot"),
    [
        ("Adam", {"amsgrad": True}, "max_exp_avg_sq"),
        ("AdamW", {"amsgrad": True}, "max_exp_avg_sq"),
        ("RMSprop", {"momentum": 0.9}, "momentum_buffer"),
        ("RMSprop", {"centered": True}, "grad_avg"),
    ],
)
def test_a_slot_that_torch_cannot_make_late_is_refused(kind, late, slot):
    optimizer, weights = one_block(kind)
    optimizer.step([torch.ones(64)], frozenset({0}), default_hypers(kind))
    before = weights.clone()
    with pytest.raises(UsageError, match=f"{next(iter(late))} was switched on .* no {slot}"):
        optimizer.step([torch.ones(64)], frozenset({0}), default_hypers(kind, **late))
    assert torch.equal(weights, before)


def test_hypers_that_do_not_fit_step_nothing():
    spans, plain, gradients = both("AdamW", 1)
    before, grads = spans.gather(), gradients()
    good, bad = hypers_of(plain.optimizer)
    bad = {name: value for name, value in bad.items() if name != "betas"}
    with pytest.raises(UsageError, match="betas"):
        spans.step(grads, [good, bad])
    with pytest.raises(UsageError, match="hypers of 1 param groups, but the model has group 1"):
        spans.step(grads, [good])
    assert all(map(torch.equal, spans.gather(), before))


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_before_its_first_step_an_optimizer_holds_nothing(kind):
    assert one_block(kind)[0].state_bytes() == 0


def test_state_bytes_are_those_of_the_slots():
    adam, _ = one_block("Adam")
    sgd, _ = one_block("SGD")
    adam.step([torch.ones(64)], frozenset({0, 1}), default_hypers("Adam"))
    sgd.step([torch.ones(64)], frozenset({0, 1}), default_hypers("SGD"))
    assert adam.state_bytes() == 2 * 32 * 4 + 4  # two vectors of 32 elements and a step count
    assert sgd.state_bytes() == 0


def test_a_snapshot_is_zero_where_a_span_was_never_stepped():
    optimizer, _ = one_block("Adam")
    optimizer.step([torch.ones(64)], frozenset({1}), default_hypers("Adam"))
    (block,) = optimizer.snapshot().blocks
    first, second, third = block.spans
    assert (first.vectors, second.vectors, third.vectors) == ((), ("exp_avg", "exp_avg_sq"), ())
    assert block.vectors["exp_avg"].nonzero().flatten().tolist() == list(range(16, 32))


def test_slots_of_another_optimizer_or_layout_are_refused():
    optimizer, _ = one_block("Adam")
    optimizer.step([torch.ones(64)], frozenset({0}), default_hypers("Adam"))
    saved = optimizer.snapshot()
    for kind, elements in (("AdamW", (64,)), ("Adam", (80,))):
        other, _ = one_block(kind, elements)
        with pytest.raises(ModelMismatch, match=rf"Adam on blocks of \[64\] .* {kind} on"):
            other.restore(saved)


def halves(spans, at):
    """The first span in two: a cut inside a vector of 16 elements would change bits."""
    first, *rest = spans
    return (replace(first, stop=at), replace(first, start=at), *rest)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: replace(block, spans=block.spans[1:]),
        lambda block: replace(block, spans=block.spans[::-1]),
        lambda block: replace(block, spans=(replace(block.spans[0], stop=8), *block.spans[1:])),
        lambda block: replace(block, spans=halves(block.spans, 8)),
        lambda block: replace(block, vectors={"exp_avg": torch.zeros(63)}),
    ],
)
def test_slots_that_do_not_fit_their_block_are_refused(spoil):
    optimizer, _ = one_block("Adam")
    optimizer.step([torch.ones(64)], frozenset({0}), default_hypers("Adam"))
    saved = optimizer.snapshot()
    with pytest.raises(ModelMismatch):
        optimizer.restore(replace(saved, blocks=tuple(map(spoil, saved.blocks))))
    assert_same([optimizer.snapshot()], [saved])


def test_no_shard_steps_what_is_not_elementwise():
    with pytest.raises(UsageError, match="no optimizer is named LBFGS"):
        one_block("LBFGS")
