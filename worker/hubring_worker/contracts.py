"""What the parts of a worker ask of one another."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubring_common.ids import BatchKey
from hubring_common.messages import Hypers, Span


@dataclass(frozen=True, slots=True)
class Step:
    """One call of `optimizer.step()`, apart from the gradient's bytes.

    `present` holds the indices of the parameters that have a gradient; none of them where the
    step abstains (a GradScaler's overflow) and only says that the batches are used up.
    """

    present: frozenset[int]
    hypers: tuple[Hypers, ...]


class Hub(Protocol):
    """Where the optimizer wrapper sends a step: gradients out, a whole version in."""

    def step(self, step: Step) -> None:
        """Returns when every shard has acknowledged and the new weights have landed."""
        ...


class DataTasks(Protocol):
    """Where the loader gets its batches: leases from the coordinator."""

    def declare(self, settings: Mapping[str, str], batches: int) -> None:
        """Say what one epoch is. Raises SettingsMismatch, naming the field that differs."""
        ...

    def take(self, epoch: int) -> Span | None:
        """The next task, perhaps of an earlier epoch that lost a worker; None: none is left."""
        ...

    def give_back(self, spans: Sequence[Span]) -> None:
        """Batches that were leased and will not be trained here."""
        ...


class Drawn(Protocol):
    """Where the hub learns which batches a gradient was computed on."""

    def take_delivered(self) -> tuple[tuple[BatchKey, ...], int]:
        """The keys of the batches handed out since the last call, and their samples."""
        ...

    def leases_of(
        self, done: Collection[BatchKey], returned: Collection[BatchKey]
    ) -> tuple[Collection[BatchKey], Collection[BatchKey]]:
        """The leases that (are done, go back) now that every shard of the hub has the batches
        `done`, and that `returned` are to be trained again.

        For data in shards a lease is a whole shard of it; else it is the batch itself. Asked with
        nothing it tells of what was not known to be at an end when its last batch was settled.
        """
        ...
