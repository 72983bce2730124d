"""The hub as the optimizer wrapper sees it: one step out to every shard, whole versions back."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from hubring_common import wire
from hubring_common.carrier.base import Extents
from hubring_common.errors import Diverged, RunEnded
from hubring_common.ids import UNLEASED, BatchKey, Seq
from hubring_worker.contracts import Drawn, Step
from hubring_worker.flat import FlatModel
from hubring_worker.lanes import Lanes
from hubring_worker.link import Order, Outcome, ShardLink
from hubring_worker.progress import Progress
from hubring_worker.session import WorkerSession
from hubring_worker.still import Still

log = logging.getLogger(__name__)

NOT_FINITE_LIMIT = 5
"""Steps in a row with NaN or Inf gradients before the run has diverged."""


class HubClient:
    """Implements `Hub`. Used by the training thread alone."""

    def __init__(
        self,
        session: WorkerSession,
        flat: FlatModel,
        links: Sequence[ShardLink],
        progress: Progress,
    ) -> None:
        self._session, self._flat, self._links = session, flat, links
        self._progress = progress
        self._lanes = Lanes(len(links))
        self._params = len(flat.layout.spec.params)
        self._unleased = self._not_finite = 0
        self.drawn: Drawn | None = None
        self.is_final = False
        """No step may follow: others have taken the weights as they are."""

    def start(self, still: Still, *, seed_them: bool) -> None:
        """Bring the still tensors and the first weights, or take those that are there."""
        if seed_them:
            self._flat.check()
            self._carry(still, ShardLink.seed_still)
            digests = self._lanes.map([link.seed for link in self._links])
            self._session.mark_seeded(tuple(digests))
        elif still.specs:
            self._carry(still, ShardLink.pull_still)
            still.landed()
        still.release()
        self.pull()

    def _carry(self, still: Still, call: Callable[[ShardLink, Extents], None]) -> None:
        """Every shard's part of the still tensors, side by side; no call where there are none."""
        if still.specs:
            ranges = (self._flat.layout.still_range(shard) for shard in range(len(self._links)))
            pairs = zip(self._links, [still.extents(*each) for each in ranges], strict=True)
            with self._session.waits.named("the hub, for frozen parameters and buffers"):
                self._lanes.map([partial(call, link, part) for link, part in pairs])

    def pull(self) -> None:
        """Land a whole version of every shard."""
        self._flat.check()
        self._lanes.map([link.pull for link in self._links])
        self._flat.landed()

    def step(self, step: Step) -> None:
        """Raises Diverged after NOT_FINITE_LIMIT steps in a row with NaN or Inf gradients."""
        if self.is_final:
            raise RunEnded("the weights are final: run.finish() was called before this step")
        keys, samples = self._take_keys()
        name = self._flat.first_nonfinite(step.present)
        order = abstention(keys, samples) if name else self._order(step, keys, samples)
        outcomes = self._push(order)
        self._judge(name or next((o.not_finite for o in outcomes if o.not_finite), ""))

    def flush(self) -> None:
        """Tell the hub of batches that were handed out and that no step followed."""
        keys, samples = self.drawn.take_delivered() if self.drawn is not None else ((), 0)
        if keys:
            self._push(abstention(keys, samples))
        self._tell((), (), 0, confessed=False)

    def _push(self, order: Order) -> list[Outcome]:
        started = time.monotonic()
        with self._session.waits.named("the hub"):
            outcomes = self._lanes.map([partial(link.push, order) for link in self._links])
        waited = time.monotonic() - started
        self._progress.stepped(order.keys[-1].epoch, order.samples, waited, outcomes)
        self._settle(order, outcomes)
        return outcomes

    def _settle(self, order: Order, outcomes: Sequence[Outcome]) -> None:
        """A batch counts when every shard has it, by this push or by an earlier one."""
        settled = frozenset.intersection(*(outcome.settled for outcome in outcomes))
        refused = frozenset(order.keys) - settled
        if refused:
            log.info("batches %s go back: a shard had others of the same push", sorted(refused))
        confessed = any(outcome.confessed for outcome in outcomes)
        self._tell(settled, refused, outcomes[0].seq, confessed=confessed)

    def _tell(
        self, done: Collection[BatchKey], back: Collection[BatchKey], seq: Seq, *, confessed: bool
    ) -> None:
        """To the coordinator, which knows of leases."""
        if self.drawn is not None:
            done, back = self.drawn.leases_of(done, back)
        self._session.settle(done, back, seq, confessed=confessed)

    def _take_keys(self) -> tuple[tuple[BatchKey, ...], int]:
        keys, samples = self.drawn.take_delivered() if self.drawn is not None else ((), 0)
        if not keys:
            self._unleased += 1
            keys = (BatchKey(UNLEASED + self._session.welcome.session, self._unleased),)
        return keys, samples

    def _order(self, step: Step, keys: tuple[BatchKey, ...], samples: int) -> Order:
        bits = sum(1 << index for index in step.present)
        present = bits.to_bytes((self._params + 7) // 8, "little")
        groups = tuple(map(wire.pack_hypers, step.hypers))
        return Order(keys, samples, step.present, present, groups)

    def _judge(self, name: str) -> None:
        """Count the steps in a row whose gradient was not finite; `name` is a parameter or ""."""
        if not name:
            self._not_finite = 0
            return
        self._not_finite += 1
        log.warning("%s has a NaN or Inf gradient: this step changed no weights", name)
        if self._not_finite >= NOT_FINITE_LIMIT:
            fact = f"{name} had a NaN or Inf gradient in {self._not_finite} steps in a row"
            raise Diverged(fact, todo="try a lower learning rate, or clip_grad_norm_")

    def close(self) -> None:
        self._lanes.close()
        for link in self._links:
            link.close()


def abstention(keys: tuple[BatchKey, ...], samples: int) -> Order:
    """A push of no gradient: it changes no weights and uses the batches up."""
    return Order(keys, samples, frozenset(), b"", ())
