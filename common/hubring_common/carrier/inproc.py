"""The carrier within one process: for tests and for trying things. It runs the real shell."""

from dataclasses import replace
from typing import Any

from hubring_common.carrier.base import (
    Extents,
    ShardPort,
    Staging,
    Version,
    digest_of,
    total,
)
from hubring_common.carrier.frames import Filler, Frame, whole
from hubring_common.messages import (
    PullAnswer,
    PullHeader,
    PushAnswer,
    PushHeader,
    SeedAnswer,
    SeedHeader,
)


class InprocCarrier:
    """Implements `Carrier` over a `ShardPort` of the same process."""

    def __init__(self, port: ShardPort[Any]) -> None:
        self._port = port

    def seed(self, header: SeedHeader, weights: Extents, timeout: float) -> SeedAnswer:
        staging = self._port.stage_seed(header, timeout)
        _fill(staging, weights)
        return self._port.seed(header, staging, timeout)

    def push(
        self, header: PushHeader, grads: Extents, weights: Extents, timeout: float
    ) -> PushAnswer:
        staging = self._port.stage_push(header, timeout)
        _fill(staging, grads)
        answer, version = self._port.push(header, staging, timeout)
        lsn, nbytes = _take(version, weights)
        return replace(answer, version=lsn, nbytes=nbytes)

    def pull(self, header: PullHeader, weights: Extents, timeout: float) -> PullAnswer:
        version = self._port.pull(header, timeout)
        try:
            extents = whole(version.data)
            digest = digest_of(extents)
            if digest != header.have:
                _copy(extents, weights)
            return PullAnswer(version.lsn, version.data.nbytes, digest)
        finally:
            version.release()

    def close(self) -> None:
        """Nothing is held."""


def _fill(staging: Staging, source: Extents) -> None:
    try:
        _copy(source, staging.extents)
    except BaseException:
        staging.discard()
        raise


def _take(version: Version, weights: Extents) -> tuple[int, int]:
    try:
        _copy(whole(version.data), weights)
        return version.lsn, version.data.nbytes
    finally:
        version.release()


def _copy(source: Extents, target: Extents) -> None:
    """Raises InvalidMessage where the two do not cover the same bytes."""
    filler = Filler([e for e in target if total([e])])
    for offset, data in source:
        filler.fill(Frame(offset, data))
    filler.finish()
