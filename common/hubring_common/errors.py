"""What can go wrong, as one tree.

HubringError
├── Retryable            the same call may succeed later
│   ├── Unreachable      10  nobody answers at the address
│   ├── TimedOut         10  a wait ran out; it says for whom
│   ├── NotYet           10  the other side is not ready for this call
│   ├── Busy             10  a limit of the other side is reached
│   └── LeaseLost        11  the member was fenced; a new session is needed
└── Fatal                    the same call will fail again
    ├── ScriptFailed      1  a training script raised
    ├── UsageError        2  an option or a setting is wrong
    ├── SettingsMismatch  2  this worker's settings differ from the run's
    ├── VersionMismatch  20  the other side is another major version
    ├── ModelMismatch    21  this model is not the run's model, or cannot be held
    ├── Unauthorized     22  wrong or missing token
    ├── Diverged         23  gradients are not finite
    ├── WeightsLost      24  a server died and its memory was all there was
    ├── RunEnded         25  the run is over, or failed elsewhere
    └── InvalidMessage   26  bytes that no correct peer sends

Each carries what happened as a measured fact, who it concerns, and what to do next.
"""

from typing import ClassVar


class HubringError(Exception):
    """The root. `exit_code` is what a process that ends by it returns."""

    exit_code: ClassVar[int]

    def __init__(self, fact: str, *, who: str = "", todo: str = "") -> None:
        super().__init__(fact)
        self.fact, self.who, self.todo = fact, who, todo

    def __str__(self) -> str:
        who = f" [{self.who}]" if self.who else ""
        todo = f". {self.todo[0].upper()}{self.todo[1:]}" if self.todo else ""
        return f"HUB-{self.exit_code:02d}{who}: {self.fact}{todo}"


class Retryable(HubringError):
    pass


class Unreachable(Retryable):
    exit_code = 10


class TimedOut(Retryable):
    exit_code = 10


class NotYet(Retryable):
    exit_code = 10


class Busy(Retryable):
    exit_code = 10


class LeaseLost(Retryable):
    exit_code = 11


class Fatal(HubringError):
    pass


class ScriptFailed(Fatal):
    exit_code = 1


class UsageError(Fatal):
    exit_code = 2


class SettingsMismatch(Fatal):
    exit_code = 2


class VersionMismatch(Fatal):
    exit_code = 20


class ModelMismatch(Fatal):
    exit_code = 21


class Unauthorized(Fatal):
    exit_code = 22


class Diverged(Fatal):
    exit_code = 23


class WeightsLost(Fatal):
    exit_code = 24


class RunEnded(Fatal):
    exit_code = 25


class InvalidMessage(Fatal):
    exit_code = 26


def leaves(root: type[HubringError] = HubringError) -> list[type[HubringError]]:
    """The concrete kinds below `root`."""
    below = root.__subclasses__()
    return [root] if not below else [leaf for kind in below for leaf in leaves(kind)]


KINDS = {kind.__name__: kind for kind in leaves()}
RETRY_EXIT_CODES = frozenset(kind.exit_code for kind in leaves(Retryable))
