"""What a check found: a fact, how good it is, and what to do where it is not good. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from hubring_common.errors import HubringError, UsageError


class Grade(Enum):
    OK = 1
    NOTE = 2
    """Works, but worth a look."""
    PROBLEM = 3
    """Something will not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`about` is one word or two. `error`: what makes a named coordinator unusable from here."""

    subject: str
    about: str
    fact: str
    grade: Grade = Grade.OK
    todo: str = ""
    error: type[HubringError] | None = None


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without a problem. Of several problems the first that concerns the coordinator counts."""
    problems = [finding for finding in findings if finding.grade is Grade.PROBLEM]
    kinds = [finding.error for finding in problems if finding.error is not None]
    kinds += [UsageError for _ in problems]
    return kinds[0].exit_code if kinds else 0


def size(nbytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"
