"""The push protocol, a test a rule: docs/protocols.md."""

import pytest
from server.shards import SEED, Rig, lsn, why

from hubring_common.ids import BatchKey, PushId
from hubring_server.machine.messages import Ack, MembersAck, Refuse, SeedAck, SeedRefuse, Why
from hubring_server.machine.window import WINDOW

# --- P1: a push is named (session, seq) --------------------------------------------------------


def test_p1_the_same_id_gets_the_same_answer_and_is_not_applied_again():
    rig = Rig(1)
    first = lsn(rig.push(1, 0, 5))
    assert rig.push(1, 0, 5) == [Ack(PushId(1, 0), first, again=True)]
    assert rig.pushes == [PushId(1, 0)]


def test_p1_another_payload_under_the_same_id_is_refused():
    rig = Rig(1)
    rig.push(1, 0, 5, digest=7)
    assert why(rig.push(1, 0, 5, digest=8)) is Why.DIGEST
    assert rig.pushes == [PushId(1, 0)]


def test_p1_sessions_count_their_pushes_apart():
    rig = Rig(1, 2)
    assert lsn(rig.push(1, 0, 1)) < lsn(rig.push(2, 0, 2)) < lsn(rig.push(1, 1, 3))


def test_p1_a_refused_push_leaves_its_id_for_another():
    rig = Rig(1, 2)
    rig.push(1, 0, 5)
    assert why(rig.push(2, 0, 5)) is Why.BATCH_DONE
    lsn(rig.push(2, 0, 6, digest=9))
    assert rig.pushes == [PushId(1, 0), PushId(2, 0)]


# --- P2: first_incomplete is the mark; the window never slides by itself -----------------------


def test_p2_an_id_past_the_window_is_refused():
    rig = Rig(1)
    assert why(rig.push(1, WINDOW, 1, first=0)) is Why.WINDOW
    lsn(rig.push(1, WINDOW - 1, 1, first=0))


def test_p2_ids_within_the_window_come_in_any_order():
    rig = Rig(1)
    for seq in (2, 0, 3, 1):
        lsn(rig.push(1, seq, seq, first=0))
    assert [push.seq for push in rig.pushes] == [2, 0, 3, 1]


def test_p2_an_id_below_the_first_incomplete_is_refused():
    rig = Rig(1)
    rig.push(1, 0, 0)
    assert why(rig.push(1, 1, 1, first=2)) is Why.WINDOW


def test_p2_the_window_does_not_slide_by_itself():
    rig = Rig(1)
    for seq in range(WINDOW):
        rig.push(1, seq, seq, first=0)
    assert why(rig.push(1, WINDOW, 9, first=0)) is Why.WINDOW
    lsn(rig.push(1, WINDOW, 9, first=WINDOW))


def test_p2_each_session_has_its_own_window():
    rig = Rig(1, 2)
    rig.push(1, 0, 0)
    rig.push(1, 1, 1, first=1)
    assert why(rig.push(1, 0, 5)) is Why.STALE
    lsn(rig.push(2, 0, 5))


def test_p2_a_message_that_was_overtaken_keeps_its_own_mark():
    rig = Rig(1)
    rig.push(1, 0, 0)
    rig.push(1, 2, 2, first=1)
    lsn(rig.push(1, 1, 1, first=0))
    assert why(rig.push(1, 0, 0)) is Why.STALE, "the mark does not go back"


# --- P3: the mark moves with a logged record, over applied ids alone ---------------------------


def test_p3_the_mark_does_not_move_over_an_id_that_was_not_applied():
    rig = Rig(1)
    assert why(rig.push(1, 1, 1, first=1)) is Why.GAP
    lsn(rig.push(1, 0, 0))
    lsn(rig.push(1, 1, 1, first=1))


def test_p3_an_id_below_the_mark_is_stale():
    rig = Rig(1)
    rig.push(1, 0, 0)
    rig.push(1, 1, 1, first=1)
    assert why(rig.push(1, 0, 0)) is Why.STALE
    assert len(rig.pushes) == 2


def test_p3_a_refused_push_does_not_move_the_mark():
    rig = Rig(1, 2)
    rig.push(2, 0, 7)
    rig.push(1, 0, 0)
    assert why(rig.push(1, 1, 7, first=1)) is Why.BATCH_DONE
    assert lsn(rig.push(1, 0, 0)), "0 is still known"


def test_p3_a_known_id_does_not_move_the_mark_either():
    rig = Rig(1)
    rig.push(1, 0, 0)
    rig.push(1, 1, 1, first=0)
    assert lsn(rig.push(1, 1, 1, first=1))
    assert lsn(rig.push(1, 0, 0)), "0 is still known"


def test_p3_only_ids_within_the_window_are_remembered():
    rig = Rig(1)
    for seq in range(100):
        rig.push(1, seq, seq, first=max(0, seq - WINDOW + 1))
    (window,) = rig.shard.windows.values()
    assert (window.mark, sorted(window.applied)) == (96, [96, 97, 98, 99])


# --- P4: nothing is confessed before its first copy is stored ----------------------------------


def test_p4_a_push_is_applied_and_acknowledged_once_it_is_stored():
    rig = Rig(1, is_late=True)
    assert rig.push(1, 0, 5) == []
    assert rig.pushes == []
    assert lsn(rig.stored()) == rig.shard.logged
    assert rig.pushes == [PushId(1, 0)]


def test_p4_a_seen_id_is_not_confessed_before_its_first_copy_is_stored():
    rig = Rig(1, is_late=True)
    rig.push(1, 0, 5)
    assert rig.push(1, 0, 5) == []
    first, again = rig.stored()
    assert (first.again, again.again) == (False, True)
    assert first.lsn == again.lsn


def test_p4_a_seen_batch_is_not_confessed_before_its_first_copy_is_stored():
    rig = Rig(1, 2, is_late=True)
    rig.push(1, 0, 5)
    assert rig.push(2, 0, 5) == []
    _, refused = rig.stored()
    assert refused == Refuse(PushId(2, 0), Why.BATCH_DONE, frozenset({BatchKey(0, 5)}))


def test_p4_a_batch_that_was_stored_long_ago_is_confessed_at_once():
    rig = Rig(1, 2, is_late=True)
    rig.push(1, 0, 5)
    rig.stored()
    rig.push(1, 1, 6)
    assert why(rig.push(2, 0, 5)) is Why.BATCH_DONE


def test_p4_what_is_stored_is_answered_and_what_follows_is_not():
    rig = Rig(1, 2, is_late=True)
    rig.push(1, 0, 5)
    rig.push(2, 0, 6)
    rig.push(1, 0, 5)
    first = rig.shard.logged - 1
    assert [(a.id, a.lsn) for a in rig.stored(first)] == [(PushId(1, 0), first)] * 2
    assert rig.pushes == [PushId(1, 0)]
    assert lsn(rig.stored()) == first + 1


def test_p4_batches_of_two_records_are_confessed_with_the_later_one():
    rig = Rig(1, 2, is_late=True)
    rig.push(1, 0, 5)
    rig.push(1, 1, 6, first=0)
    assert rig.push(2, 0, 5, 6) == []
    assert lsn(rig.stored(rig.shard.logged - 1))
    _, refused = rig.stored()
    assert refused.keys == {BatchKey(0, 5), BatchKey(0, 6)}


def test_p4_first_weights_that_came_before_are_not_confessed_before_they_are_stored():
    rig = Rig(1, seed=False, is_late=True)
    assert rig.seed(1) == []
    assert rig.seed(1) == []
    assert len(rig.logged) == 2, "the members, and these weights once"
    assert rig.stored() == [SeedAck(1, SEED), SeedAck(1, SEED)]


def test_p4_a_view_that_came_before_is_not_confessed_before_it_is_stored():
    rig = Rig(1, is_late=True)
    rig.members(1, 2)
    rig.view -= 1
    assert rig.members(1, 2) == []
    assert rig.stored() == [MembersAck(2), MembersAck(2)]


# --- P5: sessions come and go by a logged record alone -----------------------------------------


def test_p5_a_push_does_not_make_its_session_a_member():
    rig = Rig(1)
    assert why(rig.push(2, 0, 5)) is Why.FENCED
    assert why(rig.push(2, 0, 5)) is Why.FENCED
    rig.members(1, 2)
    lsn(rig.push(2, 0, 5))


def test_p5_a_fenced_session_changes_nothing_any_more():
    rig = Rig(1, 2)
    rig.push(2, 0, 5)
    rig.members(1)
    assert why(rig.push(2, 1, 6)) is Why.FENCED
    assert why(rig.push(2, 0, 5)) is Why.FENCED, "not even what it did is confessed to it"
    assert rig.pushes == [PushId(2, 0)]


def test_p5_a_view_is_logged_before_it_is_acknowledged():
    rig = Rig(1, is_late=True)
    assert rig.members(1, 2) == []
    assert rig.stored() == [MembersAck(rig.view)]


def test_p5_what_a_session_had_in_the_log_counts_although_it_left():
    rig = Rig(1, 2, is_late=True)
    rig.push(2, 0, 5)
    rig.members(1)
    assert [type(answer) for answer in rig.stored()] == [Ack, MembersAck]
    assert rig.pushes == [PushId(2, 0)]


def test_p5_nobody_is_a_member_of_an_empty_view():
    rig = Rig(1)
    rig.members()
    assert why(rig.push(1, 0, 5)) is Why.FENCED
    assert rig.seed(1) == [SeedRefuse(1, SEED, Why.FENCED)]


def test_p5_an_older_view_changes_nothing():
    rig = Rig(1)
    rig.members(1, 2)
    rig.view = 0
    rig.members(1)
    lsn(rig.push(2, 0, 5))


def test_p5_a_member_that_stays_keeps_its_ids():
    rig = Rig(1, 2)
    first = lsn(rig.push(1, 0, 5))
    rig.members(1, 3)
    assert lsn(rig.push(1, 0, 5)) == first


# --- P6: a batch is applied once, whoever trains it --------------------------------------------


def test_p6_a_batch_is_refused_whoever_brings_it_again():
    rig = Rig(1, 2)
    rig.push(1, 0, 5)
    assert why(rig.push(1, 1, 5)) is Why.BATCH_DONE
    assert why(rig.push(2, 0, 5)) is Why.BATCH_DONE
    assert rig.pushes == [PushId(1, 0)]


def test_p6_a_dead_workers_batch_is_not_applied_again_by_its_next_owner():
    rig = Rig(1, 2)
    rig.push(1, 0, 5)
    rig.members(2)
    assert why(rig.push(2, 0, 5)) is Why.BATCH_DONE


def test_p6_a_push_is_refused_whole_and_the_keys_are_named():
    rig = Rig(1, 2)
    rig.push(1, 0, 5, 6)
    (refused,) = rig.push(2, 0, 6, 7)
    assert refused.keys == {BatchKey(0, 6)}
    lsn(rig.push(2, 0, 7))


def test_p6_a_batch_is_refused_from_its_logging_on():
    rig = Rig(1, 2, is_late=True)
    rig.push(1, 0, 5)
    rig.push(2, 0, 5)
    rig.stored()
    assert rig.pushes == [PushId(1, 0)]


def test_p6_the_next_epochs_batch_is_another():
    rig = Rig(1)
    rig.push(1, 0, 5, epoch=0)
    lsn(rig.push(1, 1, 5, epoch=1))
    assert why(rig.push(1, 2, 5, epoch=1)) is Why.BATCH_DONE


def test_p6_a_push_names_its_batches():
    assert why(Rig(1).push(1, 0)) is Why.NO_KEYS


# --- P7: one state ------------------------------------------------------------------------------


def test_p7_a_snapshot_carries_sessions_ids_and_batches():
    rig = Rig(1, 2)
    first = lsn(rig.push(1, 0, 5))
    rig.push(2, 0, 6)
    other = Rig(9)
    other.shard.restore(rig.shard.snapshot())
    other.view = rig.view
    assert lsn(other.push(1, 0, 5)) == first
    assert why(other.push(2, 1, 5)) is Why.BATCH_DONE
    assert why(other.push(9, 0, 8)) is Why.FENCED
    assert lsn(other.push(1, 1, 7)) == rig.shard.logged + 1


def test_p7_a_snapshot_carries_marks_views_and_that_weights_are_pushed_to():
    rig = Rig(1, 2)
    rig.push(1, 0, 5)
    rig.push(1, 1, 6)
    rig.members(1, 2, 3)
    other = Rig(1, seed=False)
    other.shard.restore(rig.shard.snapshot())
    assert other.seed(1) == [SeedAck(1, SEED)]
    assert len(other.logged) == 1, "it has those weights"
    assert why(other.push(1, 0, 5)) is Why.STALE
    assert why(other.push(1, 6, 7, first=2)) is Why.WINDOW
    assert other.seed(1, digest=71) == [SeedRefuse(1, 71, Why.SEEDED)]
    other.view = rig.view - 1
    other.members(1)
    lsn(other.push(3, 0, 7))


def test_p7_a_snapshot_does_not_change_with_the_shard():
    rig = Rig(1)
    rig.push(1, 0, 5)
    before = rig.shard.snapshot()
    rig.push(1, 1, 6, first=0)
    rig.members(1, 2)
    other = Rig(9)
    other.shard.restore(before)
    assert other.shard.snapshot() == before
    rig.push(1, 1, 6, first=0)
    lsn(other.push(1, 1, 6, first=0))
    assert why(other.push(2, 0, 7)) is Why.FENCED


def test_p7_there_is_no_snapshot_while_a_record_is_in_flight():
    rig = Rig(1, is_late=True)
    rig.push(1, 0, 5)
    with pytest.raises(RuntimeError, match="in flight"):
        rig.shard.snapshot()
    rig.stored()
    assert rig.shard.snapshot()["lsn"] == rig.shard.logged
