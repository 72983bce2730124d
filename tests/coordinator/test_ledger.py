"""The book of who trained what, and the end's verdict."""

from hypothesis import given
from hypothesis import strategies as st

from hubring_common.messages import LedgerEntry, Pushed, Span
from hubring_coordinator.machine.batches import Batches
from hubring_coordinator.machine.epoch import Epoch
from hubring_coordinator.machine.ledger import Book, seq_of, verdict


def entry(first, seq, session=1, count=1, **fields):
    return LedgerEntry(first, count, f"worker-{session}", session, seq, **fields)


def book():
    return Book({}, lambda place: None)


def test_batches_in_a_row_are_one_entry():
    pages = book()
    for n in range(5):
        pages.enter(0, entry(n, seq=10 + n, taken=1.0, done=2.0 + n))
    assert pages.entries(0) == (entry(0, 10, count=5, taken=1.0, done=6.0),)


def test_another_worker_push_order_or_epoch_begins_a_new_entry():
    pages = book()
    pages.enter(0, entry(0, seq=0))
    pages.enter(0, entry(1, seq=0, session=2))
    pages.enter(0, entry(2, seq=5, session=2))
    pages.enter(1, entry(3, seq=6, session=2))
    assert [e.first for e in pages.entries(0)] == [0, 1, 2]
    assert [e.first for e in pages.entries(1)] == [3]


def test_accumulated_batches_stay_with_their_push():
    pages = book()
    pages.enter(0, entry(0, seq=0, count=4, together=True))
    pages.enter(0, entry(4, seq=1, count=4, together=True))
    assert [(e.first, e.count, e.seq) for e in pages.entries(0)] == [(0, 4, 0), (4, 4, 1)]


def test_the_push_of_a_batch_in_a_span():
    assert seq_of(Pushed(Span(0, 4, 3), 9), 6) == 11
    assert seq_of(Pushed(Span(0, 4, 3), 9, together=True), 6) == 9


@given(st.permutations(range(12)), st.lists(st.integers(1, 2), min_size=12, max_size=12))
def test_every_batch_is_in_one_entry_whatever_the_order_and_after_a_restart(order, sessions):
    rows = {}
    pages = Book({}, lambda place: rows.update({str(place): pages.row(str(place))}))
    for seq, batch in enumerate(order):
        pages.enter(0, entry(batch, seq, session=sessions[batch]))
    found = {b: e.session for e in pages.entries(0) for b in range(e.first, e.first + e.count)}
    assert found == dict(enumerate(sessions))
    again = Book(rows, lambda place: None)
    assert again.entries(0) == pages.entries(0)


def epoch(done, batches=10, number=0):
    done = Batches.of(*done)
    return Epoch(number, batches, Batches.of((0, batches)) - done, done)


def test_a_whole_run_is_said_in_one_line():
    assert (
        verdict([epoch([(0, 10)])], [10, 10]) == "10 of 10 batches of 1 epochs counted, each once"
    )


def test_what_is_missing_is_listed():
    words = verdict([epoch([(0, 4), (5, 8)]), epoch([(0, 10)], number=1)], [])
    assert "17 of 20 batches of 2 epochs" in words
    assert words.endswith("not trained: batch 4 of epoch 0, batches 8-9 of epoch 0")


def test_a_shard_that_holds_another_number_is_named():
    assert "shard 1 holds 9" in verdict([epoch([(0, 10)])], [10, 9])
