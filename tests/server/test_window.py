"""Which batches are done, as bits, beside a plain dictionary; which ids, beside a plain set."""

from hypothesis import given
from hypothesis import strategies as st

from hubring_common.ids import UNLEASED, BatchKey
from hubring_server.machine.window import WINDOW, Applied, DoneBatches, Window

KEYS = st.builds(BatchKey, st.integers(0, 2), st.integers(0, 70))


@given(st.lists(KEYS, unique=True), st.frozensets(KEYS), st.integers(0, 100))
def test_done_batches_are_a_set_that_knows_what_is_stored(added, asked, stored):
    done = DoneBatches()
    for lsn, key in enumerate(added, 1):
        done.add(key, lsn)
    done.stored(stored)
    at = {key: lsn for lsn, key in enumerate(added, 1)}
    assert done.among(asked) == asked & at.keys()
    unstored = [at[key] for key in asked & at.keys() if at[key] > stored]
    assert done.latest_unstored(asked) == max(unstored, default=0)
    assert done.count() == len(added)


@given(st.frozensets(KEYS), st.frozensets(KEYS))
def test_done_batches_survive_as_plain_bytes(before, after):
    done, again = DoneBatches(), DoneBatches()
    for key in before:
        done.add(key, 1)
    data = done.snapshot()
    for key in after:
        done.add(key, 2)
    again.restore(data)
    assert again.among(before | after) == before
    assert again.latest_unstored(before) == 0


def test_a_long_epoch_takes_a_bit_a_batch():
    done = DoneBatches()
    for batch in range(100_000):
        done.add(BatchKey(3, batch), batch)
        if batch % 1000 == 999:
            done.stored(batch)
    assert sum(map(len, done.snapshot().values())) <= 12_500 + 512
    assert done.count() == done.leased == 100_000


def test_batch_numbers_far_apart_take_a_chunk_each():
    done = DoneBatches()
    for shard in range(10):
        done.add(BatchKey(0, shard << 32 | 5), shard)
    done.add(BatchKey(UNLEASED + 1, (1 << 63) - 1), 11)
    assert sum(map(len, done.snapshot().values())) == 10 + 512
    assert BatchKey(0, 3 << 32 | 5) in done
    assert BatchKey(0, 3 << 32 | 6) not in done
    assert (done.count(), done.leased) == (11, 10)
    again = DoneBatches()
    again.restore(done.snapshot())
    assert (again.count(), again.leased) == (11, 10)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12))))
def test_a_window_admits_each_id_once_and_stays_small(messages):
    window, logged = Window(), set()
    for lsn, (seq, first) in enumerate(messages, 1):
        if seq not in window.applied and window.judge(seq, first) is None:
            assert seq not in logged
            logged.add(seq)
            window.log(seq, first, Applied(lsn, 7))
        assert logged >= set(range(window.mark))
        assert window.applied.keys() == {seq for seq in logged if seq >= window.mark}
        assert len(window.applied) <= WINDOW
        assert window.ids == window.logged == len(logged)
