"""Servers and workers as copies of the launcher.

Importing this module imports torch and all of a server and a worker. That is its use: the
launcher does so once, before it makes the copies, while it has no threads yet.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from hubring import members, script
from hubring.children import Copy
from hubring.local import LocalCluster
from hubring.options import Member
from hubring_server.process import ServerSettings
from hubring_worker.run import Run

LOADED = (ServerSettings, Run)
"""What takes long to import and a copy finds there."""


def start(cluster: LocalCluster, command: Sequence[str], say: Callable[[str], None]) -> None:
    """All servers and workers of `cluster`. `say` gets what worker-0 prints."""
    plan = cluster.plan
    place = cluster.address, cluster.server_state, cluster.token_file, plan.timeout
    for number in range(plan.servers):
        cluster.add_server(number, Copy(partial(server, *place)))
    run, environment = partial(worker, command, cluster.threads()), cluster.worker_environment()
    for number in range(plan.workers):
        cluster.add_worker(f"worker-{number}", Copy(run, environment), None if number else say)
    for child in cluster.workers.values():
        child.relay()


def server(coordinator: str, state: Path, token_file: Path, timeout: float, lifeline: int) -> int:
    """A server of the cluster, until the run is over. Returns its exit code."""
    member = Member(token_file=token_file, timeout=timeout, lifeline=lifeline)
    return members.server(
        member,
        coordinator=coordinator,
        bind="127.0.0.1:0",
        ops="127.0.0.1:0",
        state=state,
        threads=1,
        plaintext=False,
    )


def worker(command: Sequence[str], threads: int, lifeline: int) -> int:
    """A training script to its end. `threads` of torch: OMP_NUM_THREADS was read at its import."""
    torch.set_num_threads(threads)
    return script.main(["--lifeline", str(lifeline), *command])
