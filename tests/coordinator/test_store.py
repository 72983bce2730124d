"""One contract for every store, and what only a file can do wrong."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubring_common.errors import Busy, UsageError
from hubring_coordinator.machine.events import Put
from hubring_coordinator.store import FILE, MemoryStore, SqliteStore

KEYS = st.tuples(st.sampled_from(["run", "epoch"]), st.text(max_size=4))
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
PUTS = st.lists(st.builds(lambda key, value: Put(*key, value), KEYS, st.none() | VALUES))


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path)
    with closing(made):
        yield made


def rows(store) -> dict[tuple[str, str], object]:
    return {(row.kind, row.key): row.value for row in store.load()}


def test_rows_are_written_replaced_and_deleted(store):
    assert store.load() == []
    store.commit([Put("run", "", {"view": 1}), Put("member", "2", {"name": "worker-0"})])
    store.commit([Put("run", "", {"view": 2}), Put("member", "2", None), Put("x", "y", None)])
    assert rows(store) == {("run", ""): {"view": 2}}


def test_a_batch_that_cannot_be_written_changes_nothing(store):
    store.commit([Put("run", "", 1)])
    with pytest.raises(TypeError):
        store.commit([Put("run", "", 2), Put("odd", "", object())])
    assert rows(store) == {("run", ""): 1}


def test_values_come_back_as_data_of_their_own(store):
    value = {"runs": [[0, 1]]}
    store.commit([Put("epoch", "0", value)])
    value["runs"].append([5, 6])
    assert rows(store) == {("epoch", "0"): {"runs": [[0, 1]]}}


def test_numbers_that_are_none(store):
    store.commit([Put("run", "", {"loss": math.nan})])
    assert math.isnan(rows(store)["run", ""]["loss"])


@given(batches=st.lists(PUTS, max_size=4))
def test_the_stores_agree(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("store")
    memory, file, expected = MemoryStore(), SqliteStore(folder), {}
    for batch in batches:
        memory.commit(batch)
        file.commit(batch)
        for put in batch:
            expected[put.kind, put.key] = put.value
    file.close()
    with closing(SqliteStore(folder)) as again:
        left = {key: value for key, value in expected.items() if value is not None}
        assert rows(memory) == rows(again) == left


def test_a_folder_has_one_coordinator(tmp_path):
    held = rf"another coordinator \(pid {os.getpid()}\)"
    with closing(SqliteStore(tmp_path)), pytest.raises(UsageError, match=held):
        SqliteStore(tmp_path)
    SqliteStore(tmp_path).close()


def test_what_was_committed_survives_a_kill(tmp_path):
    script = (
        "import sys, pathlib, time\n"
        "from hubring_coordinator.store import SqliteStore\n"
        "from hubring_coordinator.machine.events import Put\n"
        f"store = SqliteStore(pathlib.Path({str(tmp_path)!r}))\n"
        "store.commit([Put('run', '', 7)])\n"
        "print('committed', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"committed\n"
        child.send_signal(signal.SIGKILL)
    with closing(SqliteStore(tmp_path)) as store:
        assert rows(store) == {("run", ""): 7}


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(UsageError, match="is damaged") as caught:
        SqliteStore(tmp_path)
    assert "move" in caught.value.todo
    (tmp_path / FILE).unlink()
    SqliteStore(tmp_path).close()


def test_a_damaged_page_is_found_at_the_start(tmp_path):
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([Put("epoch", str(n), "x" * 500) for n in range(200)])
    damaged = bytearray((tmp_path / FILE).read_bytes())
    damaged[8192:16384] = os.urandom(8192)
    (tmp_path / FILE).write_bytes(damaged)
    with pytest.raises(UsageError, match="is damaged"):
        SqliteStore(tmp_path)


def test_a_full_disk_says_so_and_keeps_what_was_there(tmp_path):
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([Put("run", "", 1)])
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(Busy, match="is full"):
            store.commit([Put("run", "", 2), Put("epoch", "0", "x" * 100_000)])
        assert rows(store) == {("run", ""): 1}


def test_another_schema_is_refused(tmp_path):
    SqliteStore(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(UsageError, match="schema 9"):
        SqliteStore(tmp_path)


def test_another_programs_lock_on_the_file(tmp_path):
    with closing(SqliteStore(tmp_path)) as store:
        store._db.execute("PRAGMA busy_timeout = 10")
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Busy, match="another program holds"):
                store.commit([Put("run", "", 1)])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot use the state folder"):
        SqliteStore(tmp_path / "file" / "below")
