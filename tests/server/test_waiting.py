"""Pushes that wait for others before they become a record, by a mode that takes all or none."""

import pytest
from server.shards import Rig, why

from hubring_common.ids import PushId
from hubring_server.machine.messages import Ack, MembersAck, Refuse, Why
from hubring_server.machine.mode import Mode

TOGETHER = Mode(
    lambda waiting, sessions: (
        tuple(waiting[s] for s in sorted(sessions))
        if waiting and waiting.keys() == sessions
        else ()
    )
)


def test_pushes_that_belong_together_are_one_record():
    rig = Rig(1, 2, mode=TOGETHER)
    assert rig.push(2, 0, 5) == []
    assert rig.push(1, 0, 6) == [Ack(PushId(1, 0), 3), Ack(PushId(2, 0), 3)]
    assert rig.pushes == [PushId(1, 0), PushId(2, 0)]
    assert rig.push(2, 0, 5) == [Ack(PushId(2, 0), 3, again=True)]


def test_p1_a_resend_of_what_waits_is_answered_with_the_first_copy():
    rig = Rig(1, 2, mode=TOGETHER)
    rig.push(1, 0, 6)
    assert rig.push(1, 0, 6) == []
    assert len(rig.lent) == 1, "the second copy's payload is given back"
    assert len(rig.push(2, 0, 5)) == 2
    assert rig.pushes == [PushId(1, 0), PushId(2, 0)]


def test_p1_nothing_else_takes_the_place_of_what_waits():
    rig = Rig(1, 2, mode=TOGETHER)
    rig.push(1, 0, 6)
    assert why(rig.push(1, 0, 6, digest=8)) is Why.DIGEST
    assert why(rig.push(1, 0, 7)) is Why.DIGEST
    assert why(rig.push(1, 1, 7, first=0)) is Why.DIGEST
    rig.push(2, 0, 5)
    assert rig.pushes == [PushId(1, 0), PushId(2, 0)]


def test_p5_what_a_leaver_had_waiting_is_turned_away_and_the_rest_goes_on():
    rig = Rig(1, 2, 3, mode=TOGETHER)
    rig.push(1, 0, 6)
    rig.push(3, 0, 7)
    rig.push(2, 0, 5)
    rig.push(1, 1, 8)
    rig.push(3, 1, 9)
    answers = rig.members(2, 3)
    assert answers == [Refuse(PushId(1, 1), Why.FENCED), MembersAck(2)]
    assert rig.push(2, 1, 10) == [Ack(PushId(2, 1), 5), Ack(PushId(3, 1), 5)]


def test_p5_a_view_completes_what_waited_for_a_leaver_alone():
    rig = Rig(1, 2, mode=TOGETHER)
    rig.push(2, 0, 5)
    assert rig.members(2) == [MembersAck(2), Ack(PushId(2, 0), 4)]


def test_p7_there_is_no_snapshot_while_a_push_waits():
    rig = Rig(1, 2, mode=TOGETHER)
    rig.push(1, 0, 6)
    with pytest.raises(RuntimeError, match="in flight"):
        rig.shard.snapshot()
