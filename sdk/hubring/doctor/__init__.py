"""`hubring doctor`: whether this machine can run a cluster, or take part in a named one.

Each check says what it measured. Torch is loaded last, and only for what it alone knows.
"""

from collections.abc import Iterator
from pathlib import Path

from hubring.doctor import machine, network, software
from hubring.doctor.finding import Finding, Grade
from hubring_common import net

STATE = Path("hubring-state")


def examine(coordinator: str, token_file: Path | None, runs: Path) -> list[Finding]:
    """`coordinator`: HOST:PORT, or "" for this machine alone. Takes less than 5 s.

    Raises UsageError where `coordinator` is not HOST:PORT.
    """
    if coordinator:
        net.split(coordinator)
    versions = list(software.check())
    can_call = all(each.grade is not Grade.PROBLEM for each in versions)
    about_cluster = list(_cluster(coordinator, token_file) if can_call else ())
    here = [*machine.check(runs, STATE), *network.check(coordinator)]
    build = list(software.torch_build())
    return [*versions, *build, machine.cores(), *here, *about_cluster]


def _cluster(coordinator: str, token_file: Path | None) -> Iterator[Finding]:
    """Imports gRPC and the generated code, which must be of versions that work."""
    from hubring.doctor import cluster

    yield from cluster.token(token_file)
    if coordinator:
        yield from cluster.coordinator(coordinator, token_file)
        yield cluster.clock()
