"""The tail of an epoch: who has nothing to do is given half of what another has not begun.

The batches stay leased to their holder until it gives them back, so none is trained twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from hubring_common.messages import Recall, Settle, Take
from hubring_coordinator.machine.members import Member
from hubring_coordinator.machine.state import State
from hubring_coordinator.machine.tasks import EPOCHS_AHEAD

WORTH = 0.1
"""Seconds of work that a holder must have left of an epoch which it has begun; below that,
whoever asks goes on to the next epoch sooner than the answer would come."""


@dataclass(frozen=True, slots=True)
class Load:
    """`batches` of an epoch that `holder` has not settled, `seconds` of its work."""

    holder: Member
    batches: int
    seconds: float


class Sharing:
    def __init__(self, state: State) -> None:
        self._state = state
        self._numbers = count(1)

    def ask(self, member: Member, take: Take) -> str:
        """Recall batches from whoever has the most left. Returns why to wait, or ""."""
        loads = list(self._loads(member, take))
        asked = next((load for load in loads if load.holder.told.recall is not None), None)
        if asked is None and loads:
            asked = max(loads, key=lambda load: load.seconds)
            self._recall(asked, member, take.epoch)
        if asked is None:
            return ""
        return f"{asked.holder.name} is asked for a part of its {asked.batches} batches"

    def evens_out(self, member: Member, take: Take) -> bool:
        """A worker that came later than the others: have one give back what it holds of the
        epochs to come beyond a fair share. Else the late one would have nothing to do while the
        coordinator is away. True: ask again for these, before later ones.
        """
        tasks, workers = self._state.tasks, self._state.roster.workers
        keep = -(-self._batches // len(workers))
        for epoch in range(take.epoch + 1, take.epoch + EPOCHS_AHEAD):
            if not (held := tasks.holders_in(epoch)):
                break
            holder = max(workers, key=lambda w: held.get(w.session, 0))
            most = held.get(holder.session, 0)
            is_bare = holder.told.bare == (epoch, most)
            if 2 * held.get(member.session, 0) < keep < most and not is_bare:
                self._recall_ahead(holder, epoch, keep)
                return True
        return False

    @property
    def _batches(self) -> int:
        return self._state.data.batches if self._state.data else 0

    def _recall_ahead(self, holder: Member, epoch: int, keep: int) -> None:
        if holder.told.recall is None and holder.stream is not None:
            recall = Recall(next(self._numbers), epoch, 0, keep)
            holder.told.recall = recall
            self._state.tell(holder, recall)

    def answered(self, member: Member, settle: Settle) -> None:
        recall = member.told.recall
        if recall is None or recall.recall != settle.recall:
            return
        member.told.recall = None
        if not settle.returned:
            member.told.bare = self._held(member, recall.epoch)

    def _loads(self, asking: Member, take: Take) -> Iterator[Load]:
        """Who could give some of the epoch: not one who has just said that it has begun it all."""
        state = self._state
        for session, batches in state.tasks.holders_in(take.epoch).items():
            holder = state.roster.all[session]
            seconds = batches * (holder.pace or asking.pace)
            has_begun = state.tasks.at_work(session) >= take.epoch
            is_much = batches >= 2 and (seconds >= WORTH or not has_begun)
            is_bare = holder.told.bare == (take.epoch, batches)
            can_hear = holder.stream is not None and not state.is_suspect(holder)
            if holder is not asking and is_much and can_hear and not is_bare:
                yield Load(holder, batches, seconds)

    def _recall(self, load: Load, asking: Member, epoch: int) -> None:
        """So much that both are done at the same time."""
        theirs, ours = load.holder.pace or 1.0, asking.pace or load.holder.pace or 1.0
        share = max(1, int(load.batches * theirs / (theirs + ours)))
        recall = Recall(next(self._numbers), epoch, share)
        load.holder.told.recall = recall
        self._state.tell(load.holder, recall)

    def _held(self, member: Member, epoch: int) -> tuple[int, int]:
        return epoch, self._state.tasks.holders_in(epoch).get(member.session, 0)
