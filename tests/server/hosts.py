"""A real shard, its shell and thread, and headers as a correct worker sends them."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from hubring_common import wire
from hubring_common.carrier.base import Extent, Extents, digest_of, total
from hubring_common.ids import BatchKey, PushId
from hubring_common.layout import ModelSpec, ParamSpec, StillSpec, plan
from hubring_common.messages import PullHeader, PushHeader, SeedHeader
from hubring_common.optimizers import ELEMENTWISE, hypers_of
from hubring_server.host import ShardHost
from hubring_server.log import MemoryLog
from hubring_server.machine.mode import ASYNC
from hubring_server.weights import ShardWeights

RUN = "a-run"
SHAPES = {"first.weight": (40, 30), "first.bias": (40,), "last.weight": (300, 40)}


def spec(kind: str = "SGD", shapes=None, still: int = 0) -> ModelSpec:
    """`still`: bytes of one still tensor."""

    def stride(shape):
        return tuple(torch.empty(shape).stride())

    shapes = SHAPES if shapes is None else shapes
    params = [ParamSpec(n, s, stride(s), "float32", 0) for n, s in shapes.items()]
    frozen = (StillSpec("frozen", (still,), "uint8", still),) if still else ()
    return ModelSpec(tuple(params), kind, frozen)


def hypers(kind: str = "SGD", **options) -> tuple:
    """What one param group of torch's class sends."""
    optimizer = ELEMENTWISE[kind]([torch.nn.Parameter(torch.ones(1))], **options)
    return tuple(map(wire.pack_hypers, hypers_of(optimizer)))


class LateLog:
    """A sink that has the records up to `limit`; the test says when it has more."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._waiting: list = []  # in LSN order

    def store(self, entry, stored) -> None:
        with self._lock:
            self._waiting.append((entry.record.lsn, stored))
        self.reach(self.limit)

    def reach(self, limit: int) -> None:
        with self._lock:
            self.limit = limit
            while self._waiting and self._waiting[0][0] <= limit:
                lsn, stored = self._waiting.pop(0)
                stored(lsn)

    @property
    def waiting(self) -> int:
        """Records that it does not have yet."""
        return len(self._waiting)


class Sender:
    """A correct worker's end: numbers its pushes, fills its buffers with one value."""

    def __init__(self, weights: ShardWeights, session: int = 1, groups=None) -> None:
        self.layout, self.shard, self.session = weights.layout, weights.shard, session
        self.groups = hypers(lr=1.0) if groups is None else groups
        self.weights = torch.zeros(weights.nbytes // 4)
        self.seq = self.batch = 0

    def buffers(self, present=None, value: float | torch.Tensor = 1.0) -> Extents:
        """The touched slices; `value` fills them, or is the whole shard's gradient."""
        present = frozenset(range(len(self.layout.spec.params)) if present is None else present)
        whole = value if isinstance(value, torch.Tensor) else torch.full_like(self.weights, value)
        return extents_of(self.layout, self.layout.touched(self.shard, present), whole)

    @property
    def into(self) -> Extents:
        return extents_of(self.layout, self.layout.of_shard(self.shard), self.weights)

    def seed_header(self, extents: Extents, **other) -> SeedHeader:
        fields = {"nbytes": total(extents), "digest": digest_of(extents), **other}
        return SeedHeader(RUN, self.shard, self.session, **fields)

    def seed_still(self, carrier, data: bytes, **other):
        extents = [Extent(0, memoryview(data))]
        return carrier.seed(self.seed_header(extents, still=True, **other), extents, 30)

    def pull_still(self, carrier, nbytes: int) -> bytes:
        room = bytearray(nbytes)
        header = PullHeader(RUN, self.shard, self.session, still=True)
        carrier.pull(header, [Extent(0, memoryview(room))], 30)
        return bytes(room)

    def header(self, extents: Extents, present=None, bits=b"", **other) -> PushHeader:
        present = range(len(self.layout.spec.params)) if present is None else present
        fields = {
            "run": RUN,
            "shard": self.shard,
            "id": PushId(self.session, self.seq),
            "first_incomplete": self.seq,
            "keys": (BatchKey(self.session, self.batch),),
            "samples": 1,
            "base": 0,
            "present": bits or sum(1 << i for i in present).to_bytes(1, "little"),
            "groups": self.groups,
            "nbytes": total(extents),
            "digest": digest_of(extents),
        }
        return PushHeader(**{**fields, **other})

    def seed(self, carrier, value: float = 0.0):
        extents = self.buffers(value=value)
        return carrier.seed(self.seed_header(extents), extents, 5)

    def push(self, carrier, present=None, value=1.0, timeout=5.0, **other):
        extents = self.buffers(present, value)
        header = self.header(extents, present, **other)
        answer = carrier.push(header, extents, self.into, timeout)
        self.seq += 1
        self.batch += 1
        return answer

    def pull(self, carrier, timeout=5.0):
        return carrier.pull(PullHeader(RUN, self.shard, self.session), self.into, timeout)


def extents_of(layout, slices, whole: torch.Tensor) -> list[Extent]:
    data = memoryview(whole.numpy()).cast("B")
    return [
        Extent(s.offset_bytes, data[s.offset_bytes : s.offset_bytes + layout.slice_bytes(s)])
        for s in slices
    ]


def side_by_side(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Run `work(number)` of all numbers at once; raises what one of them raised."""
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(work, number) for number in numbers]:
            done.result(60)


@contextmanager
def host(
    kind: str = "SGD", sessions=(1,), log=None, shapes=None, crashed=None, *, still=0
) -> Iterator[tuple[ShardHost, ShardWeights]]:
    weights = ShardWeights(plan(spec(kind, shapes, still), 1), 0)
    failures: list[BaseException] = []
    running = ShardHost(RUN, weights, ASYNC, log or MemoryLog(), crashed or failures.append)
    try:
        running.set_members(1, sessions, 5)
        yield running, weights
        assert not failures
    finally:
        running.close()
