"""A cluster on this machine: coordinator and servers as processes, workers as they are asked for.

Its folder `runs/ID/` holds logs, results, and, while it lives, the token and its address.
"""

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hubring.children import LIFELINE_FD, Child, Copy, Program, end
from hubring.plan import LocalPlan
from hubring.tokens import write_token
from hubring_common import plain
from hubring_common.errors import HubringError
from hubring_common.messages import Status

START_TIMEOUT = 30.0
"""Seconds that a process may take to say that it is ready."""
GRACE = 5.0
"""Seconds that a process may take to end once the run is over."""
ANY_PORT = "127.0.0.1:0"
ADDRESS_FILE, SUMMARY_FILE = "cluster.json", "summary.json"
SCRIPT_COMMAND = (sys.executable, "-m", "hubring.script")


def new_run_id() -> str:
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


class LocalCluster:
    def __init__(self, plan: LocalPlan) -> None:
        self.plan, self.run = plan, new_run_id()
        self.folder = (plan.runs / self.run).resolve()
        self._logs, self._state = self.folder / "logs", self.folder / "state"
        for folder in (self._logs, self._state):
            folder.mkdir(parents=True)
        self.token_file = self._state / "token"
        self.token = write_token(self.token_file)
        self.address = self.ops = ""
        self.members: list[Child] = []
        self.workers: dict[str, Child] = {}

    @property
    def coordinator(self) -> Child:
        return self.members[0]

    @property
    def page(self) -> str:
        """The page's address, once the coordinator is there."""
        return f"http://{self.ops}/"

    @property
    def server_state(self) -> Path:
        """The folder in which the servers claim their slots."""
        return self._state / "servers"

    def start(self) -> None:
        """Start coordinator and servers. Raises where the coordinator does not come up."""
        self.start_coordinator()
        self.await_coordinator()
        for number in range(self.plan.servers):
            self.add_server(number, Program(self._server_command()))

    def start_coordinator(self) -> None:
        plan = self.plan
        command = self._command(
            *("coordinator", "--servers", str(plan.servers), "--workers", str(plan.workers)),
            *("--mode", plan.mode, "--seed", str(plan.seed)),
            *("--run-id", self.run, "--run-dir", str(self.folder)),
            *("--bind", self.address or ANY_PORT, "--ops", self.ops or ANY_PORT),
            *("--state", str(self._state / "coordinator")),
            *(("--tensorboard", plan.tensorboard) if plan.tensorboard else ()),
        )
        child = Child("coordinator", Program(command), self._log_of("coordinator"))
        self.members[:1] = [child]

    def restart_coordinator(self) -> None:
        """A new one where the one that ended was: it goes on from that one's store."""
        self.coordinator.kill()
        self.start_coordinator()
        self.await_coordinator()

    def await_coordinator(self) -> None:
        self.address, self.ops = self._announced(self.coordinator).split()
        self._write_address()

    def add_server(self, number: int, what: Program | Copy) -> None:
        name = f"server-{number}"
        self.members.append(Child(name, what, self._log_of(name)))

    def add_worker(
        self, name: str, what: Program | Copy, say: Callable[[str], None] | None = None
    ) -> None:
        """`what` runs a script, in the place of the worker of that name that there was."""
        self.workers[name] = Child(name, what, self._log_of(name), say)

    def start_worker(self, name: str, script: Sequence[str]) -> None:
        """Start `script` (a path and its arguments) as a program of its own."""
        command = [*SCRIPT_COMMAND, "--lifeline", LIFELINE_FD, *script]
        self.add_worker(name, Program(command, self.worker_environment()))

    def threads(self) -> int:
        """Threads of a worker: the cores are shared out, unless the user has said.

        One is left to the servers. Where threads outnumber cores, they wait for one another by
        spinning: two of them on two busy cores trained the digits at a quarter of one's speed.
        """
        spare = (os.cpu_count() or 1) - 1
        fair = max(1, spare // max(1, self.plan.workers))
        return int(os.environ.get("OMP_NUM_THREADS", fair))

    def worker_environment(self) -> dict[str, str]:
        return {
            "HUBRING_COORDINATOR": self.address,
            "HUBRING_TOKEN_FILE": str(self.token_file),
            "HUBRING_TIMEOUT": str(self.plan.timeout),
            "OMP_NUM_THREADS": str(self.threads()),
        }

    def final_status(self) -> Status | None:
        """What the coordinator wrote at the run's end; None where it did not come to that."""
        file = self.folder / SUMMARY_FILE
        return plain.load(Status, json.loads(file.read_text())) if file.exists() else None

    def close(self) -> None:
        """Let everything end, end what does not, and leave only results and logs."""
        end([*self.workers.values(), *reversed(self.members)], GRACE)
        shutil.rmtree(self._state, ignore_errors=True)
        (self.folder / ADDRESS_FILE).unlink(missing_ok=True)

    def _server_command(self) -> list[str]:
        where = ("--coordinator", self.address, "--state", str(self.server_state))
        return self._command("server", *where)

    def _command(self, *words: str) -> list[str]:
        common = ("--token-file", str(self.token_file), "--timeout", str(self.plan.timeout))
        return [sys.executable, "-m", "hubring", *words, "--lifeline", LIFELINE_FD, *common]

    def _announced(self, child: Child) -> str:
        try:
            return child.lifeline.announcement(child.name, START_TIMEOUT)
        except HubringError as error:
            raise type(error)(f"{error.fact}\n{child.tail()}", who=child.name) from None

    def _log_of(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _write_address(self) -> None:
        where = {"coordinator": self.address, "ops": self.ops, "token_file": str(self.token_file)}
        (self.folder / ADDRESS_FILE).write_text(json.dumps(where))


def find_running(runs: Path) -> tuple[str, Path] | None:
    """(coordinator's address, token file) of the newest cluster below `runs` that is not closed."""
    for file in sorted(runs.glob(f"*/{ADDRESS_FILE}"), reverse=True):
        where = json.loads(file.read_text())
        return where["coordinator"], Path(where["token_file"])
    return None
