"""`hubring stacks`: what real processes do, a busy one and a stopped one among them."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from cluster.command import SCRIPTS, finish, hubring, start, wait_for

BUSY, TIMEOUT = str(SCRIPTS / "busy.py"), "10"


@pytest.fixture
def place(tmp_path):
    """(folder, the options that name its cluster, two workers' marks), while they compute."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = ("--token-file", str(tmp_path / "token"), "--timeout", TIMEOUT)
    where = ("--coordinator", address, *common)
    started, marks = [], [tmp_path / f"busy-{number}" for number in range(2)]
    try:
        started.append(start(tmp_path, "coordinator", "--bind", address, "--make-token", *common))
        wait_for((tmp_path / "token").exists, "the token")
        started.append(start(tmp_path, "server", *where))
        started += [start(tmp_path, "worker", BUSY, *where, "--", str(mark)) for mark in marks]
        wait_for(lambda: all(mark.exists() for mark in marks), "the workers compute")
        yield tmp_path, where, marks
    finally:
        for process in started:
            process.kill()
        for process in started:
            finish(process)


def stacks_of(folder: Path, *words: str) -> dict[str, dict[str, str]]:
    done = hubring(folder, "stacks", *words, "--json")
    assert done.returncode == 0, done.stderr
    return {each["member"]: each for each in json.loads(done.stdout)["members"]}


def test_a_busy_worker_answers_and_a_stopped_one_is_named(place):
    folder, where, marks = place
    shown = stacks_of(folder, *where)
    assert set(shown) == {"coordinator", "server-0", "worker-0", "worker-1"}
    assert not any(each["why"] for each in shown.values())
    for name in ("worker-0", "worker-1"):
        assert "in compute" in shown[name]["text"] and "thread attend" in shown[name]["text"]
    assert "hubring_coordinator" in shown["coordinator"]["text"]
    assert "hubring_server" in shown["server-0"]["text"]

    name, stopped = marks[0].read_text().split()
    os.kill(int(stopped), signal.SIGSTOP)
    try:
        began = time.monotonic()
        shown = stacks_of(folder, *where)
        assert time.monotonic() - began < 2 * float(TIMEOUT)
    finally:
        os.kill(int(stopped), signal.SIGCONT)
    assert [each["member"] for each in shown.values() if each["why"]] == [name]
    silent = shown[name]
    assert re.match(r"no answer for [5-9]\.\d s, last heard \d+\.\d s ago$", silent["why"])
    assert not silent["text"]

    words = hubring(folder, "stacks", "server-0", *where).stdout
    assert words.startswith("server-0\nthread MainThread\n") and "worker-" not in words
    missing = hubring(folder, "stacks", "server-7", *where)
    assert missing.returncode == 2 and "There are coordinator, server-0" in missing.stderr


def test_nothing_runs_here(tmp_path):
    done = hubring(tmp_path, "stacks")
    assert done.returncode == 2 and "no cluster runs below runs" in done.stderr
