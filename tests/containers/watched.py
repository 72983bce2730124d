"""A Compose project that trains, watched from the host: its status, its members, its dead."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from containers.compose import Compose

from hubring.control import Control
from hubring_common.errors import Retryable
from hubring_common.messages import MemberState, MemberStatus, Role, Status

PATIENCE = 60.0


class Watched:
    """Use as a context manager around a project that is up."""

    def __init__(self, compose: Compose) -> None:
        self.compose = compose
        token = compose("exec", "-T", "coordinator", "cat", "/run/hubring/token").stdout.strip()
        self.control = Control(compose.address, token)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.control.close()

    def status(self) -> Status | None:
        """None while nobody answers."""
        try:
            return self.control.status()
        except Retryable:
            return None

    def wait_for(self, condition, what: str, timeout: float = PATIENCE):
        """What `condition(status)` returns once it is true. Fails with `what` and the status."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            if status is not None and (value := condition(status)):
                return value
            if time.monotonic() >= deadline:
                logs = self.compose("logs", "--no-color", "--tail", "20", check=False).stdout
                pytest.fail(f"not within {timeout:.0f} s: {what}\n{status}\n{logs}")
            time.sleep(0.1)

    def up(self, workers: int) -> None:
        """As many workers as that; what was killed is started again; each takes a step."""
        words = ("--no-build", "--no-recreate", "--scale", f"worker={workers}")
        self.compose("up", "-d", *words)
        self.wait_for(lambda s: len(steps(s)) == workers, f"{workers} workers")
        self.wait_for_steps(self.status())

    def wait_for_steps(self, before: Status, more: int = 1) -> None:
        """Each worker that trained then, or trains now, takes that many steps."""
        counts = steps(before)

        def have_stepped(status: Status) -> bool:
            now = steps(status)
            return all(now.get(w, 0) >= counts.get(w, 0) + more for w in {*counts, *now})

        self.wait_for(have_stepped, f"{more} more steps of each worker")

    def exit_codes(self, service: str, since: datetime) -> list[int]:
        """Of its containers that have ended since then, also of those that are removed."""
        log = self.compose.docker(
            *("events", "--since", since.isoformat(), "--until", datetime.now(UTC).isoformat()),
            *("--filter", f"label=com.docker.compose.project={self.compose.name}"),
            *("--filter", "event=die", "--format", "{{json .Actor.Attributes}}"),
        )
        rows = map(json.loads, log.splitlines())
        return [
            int(row["exitCode"]) for row in rows if row["com.docker.compose.service"] == service
        ]

    def summary(self, folder: Path) -> dict:
        return json.loads((self.compose.results(folder) / "summary.json").read_text())


def workers(status: Status) -> list[MemberStatus]:
    return [member for member in status.members if member.role is Role.WORKER]


def training(status: Status) -> list[MemberStatus]:
    """That take part, and of whose steps the coordinator has heard."""
    return [w for w in workers(status) if w.state is MemberState.ACTIVE and w.worker]


def steps(status: Status) -> dict[int, int]:
    """Session -> steps, of the workers that train."""
    return {w.session: w.worker.steps for w in training(status)}


def dead(status: Status) -> dict[int, str]:
    """Session -> why, of the workers that died."""
    return {w.session: w.why for w in workers(status) if w.state is MemberState.DEAD}
