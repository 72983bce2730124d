"""One timeout, from which every other wait follows."""

from dataclasses import dataclass

from hubring_common.errors import UsageError

SLOWEST_LINK = 1_000_000
"""Bytes a second that a call may count on when its deadline is set."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the cluster waits. `timeout` in seconds."""

    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not 0.2 <= self.timeout <= 3600:
            fact = f"timeout is {self.timeout:g} s; it must lie between 0.2 and 3600"
            raise UsageError(fact, todo="give --timeout another value")

    @property
    def heartbeat(self) -> float:
        return self.timeout / 10

    @property
    def lease(self) -> float:
        return self.timeout

    def call(self, payload: int = 0) -> float:
        """The deadline of one call that moves `payload` bytes, in seconds."""
        return 2 * self.timeout + payload / SLOWEST_LINK
