"""The limits that a container or a service manager sets on this process: Linux control groups,
version 2, or version 1 where that is mounted. None where nothing limits, and off Linux.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Version 1 says "no limit" by a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Memory:
    bytes: int
    used: int


def cpu_quota() -> float | None:
    """Cores' worth of time."""
    found = []
    for text in _read("cpu.max"):
        quota, period = text.split()
        found += [int(quota) / int(period)] if quota != "max" else []
    quotas, periods = _read("cpu.cfs_quota_us", "cpu"), _read("cpu.cfs_period_us", "cpu")
    found += [int(q) / int(p) for q, p in zip(quotas, periods, strict=True) if int(q) > 0]
    return min(found, default=None)


def memory() -> Memory | None:
    """The narrowest limit."""
    limits = [*_read("memory.max"), *_read("memory.limit_in_bytes", "memory")]
    used = [*_read("memory.current"), *_read("memory.usage_in_bytes", "memory")]
    pairs = zip(limits, used, strict=False)
    found = [Memory(int(most), int(now)) for most, now in pairs if most != "max"]
    bounded = [each for each in found if each.bytes < UNLIMITED]
    return min(bounded, key=lambda each: each.bytes - each.used, default=None)


def processes() -> int | None:
    found = [*_read("pids.max"), *_read("pids.max", "pids")]
    return min((int(most) for most in found if most != "max"), default=None)


def _read(name: str, controller: str = "") -> list[str]:
    """The file's text in this process's group and in each above it, innermost last."""
    if not OWN.exists():
        return []
    groups = (line.split(":", 2) for line in OWN.read_text().splitlines())
    paths = [path for _, names, path in groups if controller in names.split(",")]
    root = ROOT / controller
    folders = [root]
    for part in Path(paths[0]).parts[1:] if paths else ():
        folders.append(folders[-1] / part)
    return [(f / name).read_text().strip() for f in folders if (f / name).is_file()]
