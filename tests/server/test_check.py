"""What a machine's `check()` sees, and that every payload is given back once."""

import pytest
from server.shards import Rig

from hubring_server.machine.messages import MembersAck


def test_every_payload_is_given_back_once():
    rig = Rig(1, 2, is_late=True)
    rig.push(1, 0, 5)
    rig.push(1, 0, 5)
    rig.push(1, 0, 5, digest=8)
    rig.push(2, 0, 5)
    rig.push(3, 0, 5)
    rig.push(2, 9, 6)
    rig.seed(1)
    rig.seed(2)
    assert len(rig.lent) == 1, "the first copy waits for the log"
    rig.stored()
    assert not rig.lent


def spoil(name, change):
    return pytest.param(change, name, id=name)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        spoil("I1", lambda shard: shard.owed[1].append(MembersAck(1))),
        spoil("I2", lambda shard: setattr(shard, "applied", shard.logged + 1)),
        spoil("I2", lambda shard: shard.log.clear()),
        spoil("I4", lambda shard: setattr(shard.windows[1], "logged", 2)),
        spoil("I9", lambda shard: setattr(shard, "keys_logged", 2)),
        spoil("P5", lambda shard: shard.windows.clear()),
        spoil("payload", lambda shard: shard.waiting.update({1: shard.log[3].pushes[0]})),
    ],
)
def test_check_sees_what_is_broken(change, name):
    rig = Rig(1, is_late=True)
    rig.push(1, 0, 5)
    change(rig.shard)
    with pytest.raises(AssertionError, match=name):
        rig.shard.check(rig.lent)
