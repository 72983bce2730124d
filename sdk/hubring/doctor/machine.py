"""The machine itself: cores, memory, shared memory, disk, and what limits a process is under."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from hubring.doctor import cgroup
from hubring.doctor.finding import Finding, Grade, size

SUBJECT = "machine"
SMALL_SHM = 64 << 20
"""Docker's default for /dev/shm, which a few batches of a DataLoader fill."""
FEW_BYTES, NO_BYTES = 1 << 30, 50 << 20
FEW_FILES = 1024
FEW_THREADS = 512
"""A coordinator of 200 workers has up to 416 threads that answer calls."""


def check(runs: Path, state: Path) -> Iterator[Finding]:
    yield _memory()
    yield _shared_memory(Path("/dev/shm"))  # noqa: S108 - measured, not written to
    yield from (_folder(about, folder) for about, folder in (("runs", runs), ("state", state)))
    yield _files()
    yield _threads()


def cores() -> Finding:
    """Needs torch, if OMP_NUM_THREADS does not say how many threads it will use."""
    usable, why = usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdigit() else _torch_threads()
    whose = f"OMP_NUM_THREADS={asked}" if asked else "torch's own choice"
    fact = f"{usable:g} cores ({why}); {threads} torch threads a process ({whose})"
    if threads <= max(1, usable):
        return Finding(SUBJECT, "cores", fact)
    todo = (
        f"set OMP_NUM_THREADS={max(1, int(usable))} or less: threads without a core wait spinning"
    )
    return Finding(SUBJECT, "cores", fact, Grade.NOTE, todo)


def usable_cores() -> tuple[float, str]:
    """How many cores this process may use, and what says so."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cgroup.cpu_quota()
    if quota is not None and quota < (granted or 1):
        return quota, f"the cgroup's limit; {os.cpu_count()} in the machine"
    return granted or 1, f"of {os.cpu_count()} in the machine"


def _torch_threads() -> int:
    try:
        import torch
    except (ImportError, OSError):  # said already, as the torch build
        return 1
    return int(torch.get_num_threads())


def _memory() -> Finding:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    free, fact = sizes.get("MemAvailable", 0), f"{size(sizes.get('MemTotal', 0))} in the machine"
    if (limit := cgroup.memory()) is not None:
        free = min(free, limit.bytes - limit.used)
        fact += f", {size(limit.bytes)} by the cgroup's limit"
    fact = f"{size(free)} free of {fact}"
    todo = (
        "a server needs the weights 3 to 4 times, a worker about as often besides its activations"
    )
    is_little = free < FEW_BYTES
    return Finding(SUBJECT, "memory", fact, *((Grade.NOTE, todo) if is_little else ()))


def _shared_memory(place: Path) -> Finding:
    if not place.is_dir():
        todo = "without it a DataLoader cannot have num_workers > 0"
        return Finding(SUBJECT, str(place), "not there", Grade.NOTE, todo)
    usage = shutil.disk_usage(place)
    fact = f"{size(usage.free)} free of {size(usage.total)}"
    todo = "DataLoader processes pass batches through it: docker run --shm-size 1g, or shm_size: 1g"
    is_small = usage.free <= SMALL_SHM
    return Finding(SUBJECT, str(place), fact, *((Grade.NOTE, todo) if is_small else ()))


def _folder(about: str, folder: Path) -> Finding:
    """Where the folder is, or will be made."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    fact = f"{folder} ({'there' if folder.exists() else 'to be made'}), {size(free)} free"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        todo = f"{there} cannot be written to: make it writable, or name another folder"
        return Finding(SUBJECT, about, fact, Grade.PROBLEM, todo)
    if free < NO_BYTES:
        return Finding(SUBJECT, about, fact, Grade.PROBLEM, "make room, or name another folder")
    grade = (Grade.NOTE, "a model and its checkpoints may need more") if free < FEW_BYTES else ()
    return Finding(SUBJECT, about, fact, *grade)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fact = f"{_limit(soft)} open files a process (at most {_limit(hard)})"
    is_low = soft != resource.RLIM_INFINITY and soft < FEW_FILES
    todo = f"ulimit -n {FEW_FILES}: every member is a connection to the coordinator"
    return Finding(SUBJECT, "files", fact, *((Grade.NOTE, todo) if is_low else ()))


def _threads() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [soft] if soft != resource.RLIM_INFINITY else []
    limits += [most] if (most := cgroup.processes()) is not None else []
    fact = f"{_limit(min(limits, default=resource.RLIM_INFINITY))} threads and processes"
    todo = f"raise ulimit -u, or the container's pids limit, to {FEW_THREADS}"
    is_low = bool(limits) and min(limits) < FEW_THREADS
    return Finding(SUBJECT, "threads", fact, *((Grade.NOTE, todo) if is_low else ()))


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
