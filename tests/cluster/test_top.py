"""`hubring top` on a real cluster: once, as JSON, and in a terminal."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from cluster.command import TINY, environment, finish, hubring, interrupt, start, wait_for

from hubring.top import safe, sparkline


@pytest.fixture
def running(tmp_path):
    """The folder of a cluster that trains."""
    mark = tmp_path / "stepped"
    slow = ("--", "--epochs", "2000", "--pause", "0.05", "--mark", str(mark))
    process = start(tmp_path, "run", TINY, "--workers", "1", "--servers", "1", *slow)
    wait_for(mark.exists, "the first step")
    yield tmp_path
    interrupt(process)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert "page  http://127.0.0.1:" in done.stdout


def test_elsewhere_than_on_a_terminal_it_is_printed_once(running):
    shown = hubring(running, "top")
    assert shown.returncode == 0, shown.stderr
    for word in ("training", "worker-0", "server-0", "shard", "joined"):
        assert word in shown.stdout
    assert "\x1b" not in shown.stdout


def test_the_json_is_the_pages(running):
    def shown():
        return json.loads(hubring(running, "top", "--json").stdout)

    wait_for(lambda: shown()["steps"], "a heartbeat that tells of a step")
    found = shown()
    assert found["state"] == "training" and found["steps"] >= 1
    assert found["diagnosis"]["words"].endswith(".")
    assert len(found["history"]["rows"]) == 1


def read(terminal, seconds=0.1) -> bytes:
    """What is there; nothing once its other end is closed."""
    if not select.select([terminal], [], [], seconds)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_in_a_terminal_it_goes_on_until_q(running):
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hubring", "top"],
        cwd=running,
        env={**environment(), "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + 30
    while shown.count(b"training") < 3:
        assert time.monotonic() < deadline, shown
        shown += read(main)
    os.write(main, b"q")
    while process.poll() is None:
        assert time.monotonic() < deadline, "q does not end it"
        read(main)
    os.close(main)
    assert process.returncode == 0


def test_nothing_to_watch_is_bad_usage(tmp_path):
    shown = hubring(tmp_path, "top")
    assert shown.returncode == 2 and "no cluster runs below runs" in shown.stderr


def test_members_words_cannot_steer_the_terminal():
    assert safe("\x1b[2Jgone\r\n\x07") == "�[2Jgone���"
    assert safe("naïve 100 %") == "naïve 100 %"


def test_a_sparkline_has_its_extremes():
    assert sparkline([1.0, None, 8.0, 4.5]) == "▁█▄"
    assert sparkline([]) == "" and sparkline([2.0, 2.0]) == "▁▁"
