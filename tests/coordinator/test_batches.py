from hypothesis import given
from hypothesis import strategies as st

from hubring_coordinator.machine.batches import Batches

RUNS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6)


def numbers(batches: Batches) -> set[int]:
    return {n for start, stop in batches.runs for n in range(start, stop)}


def as_set(runs: list[tuple[int, int]]) -> set[int]:
    return {n for start, stop in runs for n in range(start, stop)}


@given(RUNS, RUNS)
def test_they_are_sets(one, other):
    a, b = Batches.of(*one), Batches.of(*other)
    assert numbers(a) == as_set(one)
    assert numbers(a | b) == as_set(one) | as_set(other)
    assert numbers(a - b) == as_set(one) - as_set(other)
    assert numbers(a & b) == as_set(one) & as_set(other)
    assert len(a) == len(as_set(one))
    assert bool(a) == bool(as_set(one))


@given(RUNS, RUNS)
def test_equal_sets_have_equal_runs(one, other):
    for made in (Batches.of(*one) | Batches.of(*other), Batches.of(*one) - Batches.of(*other)):
        assert made == Batches.of(*((n, n + 1) for n in sorted(numbers(made))))


@given(RUNS.filter(as_set), st.integers(1, 40))
def test_first_gives_a_run_of_the_lowest(runs, count):
    lowest = min(as_set(runs))
    expected = set()
    while lowest in as_set(runs) and len(expected) < count:
        expected.add(lowest)
        lowest += 1
    assert numbers(Batches.of(*runs).first(count)) == expected
