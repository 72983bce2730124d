"""The page of a real run: it is followed, a killed worker is seen, the coordinator may go away."""

import os
import re
import signal
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest
from cluster.command import TINY, finish, start, wait_for
from page.browser import Seen, chromium, needs_chromium, row_says

pytestmark = [pytest.mark.browser, needs_chromium]

TIMEOUT = 2.0


def free_ports(count):
    with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in with_port]
    for each in with_port:
        each.close()
    return ports


class Cluster:
    """A coordinator on fixed ports, a server, two workers: real processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port, ops = free_ports(2)
        self.address, self.page = f"127.0.0.1:{port}", f"http://127.0.0.1:{ops}/"
        self._ops = f"127.0.0.1:{ops}"
        self._started = []
        self.coordinator = self.start_coordinator()
        wait_for((folder / "token").exists, "the token")
        self._start("server", "--coordinator", self.address)
        script = ("--", "--epochs", "2000", "--pause", "0.05")
        self.workers = [
            self._start("worker", TINY, "--coordinator", self.address, more=script)
            for _ in range(2)
        ]

    def _start(self, *words, more=()):
        options = ("--token-file", str(self.folder / "token"), "--timeout", str(TIMEOUT))
        self._started.append(start(self.folder, *words, *options, *more))
        return self._started[-1]

    def start_coordinator(self):
        where = ("--bind", self.address, "--ops", self._ops, "--run-id", "watched")
        return self._start("coordinator", "--make-token", *where)

    def kill_worker(self):
        """The supervisor first, so that nobody starts the script again."""
        supervisor = self.workers[0]
        children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text()
        supervisor.kill()
        for child in map(int, children.split()):
            os.kill(child, signal.SIGKILL)

    def close(self) -> None:
        for process in reversed(self._started):
            process.kill()
            process.communicate()


def steps(seen) -> int:
    return seen.ask("page.view.steps")


def test_a_run_is_followed_from_its_start_over_a_death_and_a_restart(tmp_path):
    with closing(Cluster(tmp_path)) as cluster, chromium() as browser:
        seen = Seen(browser).open(cluster.page)
        seen.until("page.view.state === 'training' && page.view.steps > 20")
        assert seen.text("#state") == "training"
        assert {"worker-0", "worker-1", "server-0"} <= set(
            re.findall(r"\w+-\d", seen.text("#members"))
        )
        seen.until("byId('loss-chart').data?.[0].y.length > 2")
        assert seen.text("#connection") == "live"

        began = time.monotonic()
        cluster.kill_worker()
        dead = " || ".join(row_says("members", f"worker-{n}", "dead") for n in range(2))
        seen.until(dead)
        assert time.monotonic() - began < 2 * TIMEOUT + 2, "two leases, and a look a second"
        assert "is dead" in seen.text("#failure-words")

        before = seen.ask("page.rows.map(r => r[0])")
        cluster.coordinator.kill()
        seen.until("byId('connection').textContent.startsWith('coordinator away since')")
        assert seen.text("#state") == "training", "what was known stays"
        cluster.coordinator = cluster.start_coordinator()
        seen.until("byId('connection').textContent === 'live'")
        seen.until(f"page.view.boot === 2 && page.rows.length > {len(before)} + 2")
        after = seen.ask("page.rows.map(r => r[0])")
        assert after[: len(before) - 1] == before[:-1], "the chart goes on where it was"
        assert after == sorted(after)
        moving = steps(seen)
        seen.until(f"page.view.steps > {moving} + 5")
        assert seen.complaints == []

        cluster.coordinator.send_signal(signal.SIGINT)
        seen.until("page.view.is_over")
        assert finish(cluster.coordinator).returncode == 0
        seen.until("byId('connection').textContent.startsWith('the run is over')")
        report = tmp_path / "runs" / "watched" / "report.html"
        seen.open(f"file://{report}")
        assert seen.text("#state") == "stopped"
        assert "is dead" in seen.text("#failure-words")
