"""The mean of the workers' buffers: float64s, little-endian, as many from each.

What they stand for is the workers' business (`hubring_worker.buffers`).
"""

from collections.abc import Mapping

from hubring_common.bounded import BUFFERS_LIMIT
from hubring_common.errors import SettingsMismatch
from hubring_common.ids import Session


def mean(buffers: Mapping[Session, bytes]) -> bytes:
    """Summed in session order, so that it does not depend on arrival. Empty where all are."""
    import numpy as np  # a coordinator that pools nothing does without

    given = [np.frombuffer(buffers[s], "<f8") for s in sorted(buffers) if buffers[s]]
    return (sum(given[1:], given[0]) / len(given)).tobytes() if given else b""


def require_alike(mine: bytes, others: Mapping[Session, bytes], by: str) -> None:
    """Raises SettingsMismatch where another worker has more buffers, or fewer."""
    if len(mine) > BUFFERS_LIMIT or len(mine) % 8:
        fact = f"{len(mine)} bytes of buffers; at most {BUFFERS_LIMIT} can be pooled, 8 a number"
        raise SettingsMismatch(fact, todo="use the same hubring everywhere")
    for theirs in others.values():
        if len(theirs) != len(mine):
            here, there = len(mine) // 8, len(theirs) // 8
            fact = f"{by} has {here} numbers of buffers to pool, another worker {there}"
            raise SettingsMismatch(fact, todo="train the same model on every worker")
