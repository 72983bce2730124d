"""The run over time: bounded, merged rightly, and kept across a restart."""

import json
import math

import pytest
from coordinator.statuses import server, shard, status, worker
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.messages import RunState
from hubring_coordinator.page import history as h
from hubring_coordinator.page.history import History, Point, Sample, busiest, merged, sample
from hubring_coordinator.page.record import FILE, Record


def point(at, steps=None, loss=1.0, rate=10.0, covers=1):
    return Point(float(at), int(at) if steps is None else steps, loss, rate, 2, 1, covers)


def filled(count, limit=8):
    history = History(limit)
    for at in range(1, count + 1):
        assert history.add(Sample(point(at, loss=float(at))))
    return history


@given(st.integers(0, 400), st.sampled_from([4, 8, 30]))
def test_it_is_bounded_and_loses_no_sample(count, limit):
    history = filled(count, limit)
    points = history.all()
    assert len(history.points) < limit
    assert len(points) <= limit
    assert sum(p.covers for p in points) == count
    assert all(p.covers == history.stride for p in history.points)
    if count:
        mean = sum(p.loss * p.covers for p in points) / count
        assert mean == pytest.approx((count + 1) / 2)
        assert points[-1].steps == count


def test_a_sample_that_is_not_later_is_left_out_and_steps_never_fall():
    history = filled(3)
    assert not history.add(Sample(point(3)))
    assert not history.add(Sample(point(2)))
    assert history.add(Sample(point(4, steps=1)))
    assert [p.steps for p in history.all()] == [1, 2, 3, 3]


@given(st.lists(st.floats(1, 100) | st.just(math.nan), min_size=1, max_size=9))
def test_merging_averages_what_is_known(losses):
    made = merged([point(at, loss=loss) for at, loss in enumerate(losses)])
    known = [loss for loss in losses if not math.isnan(loss)]
    if known:
        assert made.loss == pytest.approx(sum(known) / len(known))
    else:
        assert math.isnan(made.loss)
    assert made.covers == len(losses) and made.seconds == len(losses) - 1


def test_the_step_of_a_time_lies_between_its_points():
    history = History()
    for at, steps in ((10, 100), (20, 300)):
        history.add(Sample(point(at, steps)))
    assert [history.steps_at(s) for s in (0, 5, 10, 15, 20, 99)] == [0, 50, 100, 200, 300, 300]
    assert History().steps_at(5) == 0


def test_a_page_that_takes_each_change_has_the_whole():
    history, rows = History(8), []
    for at in range(1, 60):
        count, stride = len(history.points), history.stride
        history.add(Sample(point(at)))
        since = count if stride == history.stride else 0
        change = history.as_json(since)
        assert change["from"] <= len(rows)
        rows[change["from"] :] = change["rows"]
        assert rows == history.as_json()["rows"]


def test_a_sample_of_a_run():
    taken = sample(status(members=(server(0), worker(0, loss=1.0), worker(1, loss=math.nan))))
    assert (taken.point.loss, taken.point.rate) == (1.0, 200.0)
    assert (taken.point.workers, taken.point.servers, taken.point.steps) == (2, 1, 200)
    over = sample(status(state=RunState.FINISHED)).point
    assert math.isnan(over.rate) and over.row()[3] is None
    assert dict(zip(h.COLUMNS, taken.point.row(), strict=True))["loss"] == 1.0


def test_the_busiest_shard_is_judged_by_what_happens_now():
    history = History()
    for at in range(10):
        shards = (shard(0, applied=100, seconds=50.0), shard(1, applied=10 * at, seconds=0.8 * at))
        history.add(sample(status(seconds=60.0 + at, shards=shards)))
    found = busiest(history)
    assert found == (1, pytest.approx(0.8), pytest.approx(0.08))
    assert busiest(History()) is None


def test_a_shard_that_was_placed_anew_has_no_negative_share():
    history = History()
    history.add(sample(status(shards=(shard(0, applied=500, seconds=9.0),))))
    history.add(sample(status(seconds=61.0, shards=(shard(0, applied=5, seconds=0.1),))))
    assert busiest(history) is None


# --- the file ------------------------------------------------------------------------------


def recorded(folder, count, run="r1", limit=8):
    """A history of `count` samples that was saved after each."""
    history, record = History(limit), Record(folder, run)
    record.load(history)
    start = int(history.last.seconds) if history.last else 0
    for at in range(start + 1, start + count + 1):
        history.add(Sample(point(at, loss=math.nan if at % 5 == 0 else 1.0)))
        record.save(history)
    return history


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 33, 200])
def test_a_restart_goes_on_with_the_points_and_the_file_is_bounded(tmp_path, count):
    before = recorded(tmp_path, count)
    lines = (tmp_path / FILE).read_text().splitlines()
    assert len(lines) <= 9
    again = History(8)
    Record(tmp_path, "r1").load(again)
    assert [p.row() for p in again.points] == [p.row() for p in before.points]
    after = recorded(tmp_path, 40)
    assert after.last.seconds >= 40
    assert [p.seconds for p in after.all()] == sorted(p.seconds for p in after.all())


def test_a_torn_line_is_left_out_and_mended(tmp_path):
    recorded(tmp_path, 5)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-9])
    history = recorded(tmp_path, 2)
    assert [p.seconds for p in history.points] == [1, 2, 3, 4, 5, 6]
    for line in file.read_text().splitlines()[1:]:
        assert len(json.loads(line)) == len(h.COLUMNS)


@pytest.mark.parametrize(
    "rubbish", ["", "\n\n", "{}", "[1,2", '{"run": "r1"}\n[]\nnull\n"x"\n[1e999,1,1,1,1,1,1]\n']
)
def test_rubbish_in_the_file_is_no_history(tmp_path, rubbish):
    (tmp_path / FILE).write_text(rubbish)
    history = History()
    Record(tmp_path, "r1").load(history)
    assert history.all() == []


def test_another_run_begins_empty(tmp_path):
    recorded(tmp_path, 5, run="r1")
    assert recorded(tmp_path, 0, run="r2").all() == []
    assert (tmp_path / FILE).read_text() == '{"run": "r2"}\n'


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    history = recorded(tmp_path / "file", 20)
    assert sum(p.covers for p in history.all()) == 20
    assert len([r for r in caplog.records if "cannot write" in r.message]) == 1
