"""Who gives a shard its first weights, and until when."""

from server.shards import SEED, Rig, lsn, why

from hubring_server.machine.messages import SeedAck, SeedRefuse, Why


def test_a_push_waits_for_the_first_weights():
    rig = Rig(1, seed=False)
    assert why(rig.push(1, 0, 5)) is Why.UNSEEDED
    assert rig.seed(1) == [SeedAck(1, SEED)]
    lsn(rig.push(1, 0, 5))


def test_only_the_chief_seeds():
    rig = Rig(1, 2, seed=False)
    assert rig.seed(2) == [SeedRefuse(2, SEED, Why.NOT_CHIEF)]
    assert rig.seed(3) == [SeedRefuse(3, SEED, Why.FENCED)]


def test_the_next_chief_seeds_anew_what_a_dead_one_left():
    rig = Rig(1, 2)
    rig.members(2)
    assert rig.seed(2, digest=71) == [SeedAck(2, 71)]
    assert len(rig.applied) == 4


def test_the_chief_itself_may_think_again_until_the_first_push():
    rig = Rig(1, is_late=True)
    assert rig.seed(1, digest=71) == []
    assert rig.seed(1, digest=72) == []
    rig.push(1, 0, 5)
    assert rig.seed(1, digest=71) == [SeedRefuse(1, 71, Why.SEEDED)]
    assert rig.seed(1, digest=72) == [], "those are the weights, not yet stored"
    seeded = [answer.digest for answer in rig.stored() if isinstance(answer, SeedAck)]
    assert seeded == [71, 72, 72]


def test_nobody_seeds_other_weights_after_the_first_push():
    rig = Rig(1)
    rig.push(1, 0, 5)
    assert rig.seed(1) == [SeedAck(1, SEED)], "the same again does no harm"
    assert rig.seed(1, digest=71) == [SeedRefuse(1, 71, Why.SEEDED)]


def test_still_tensors_come_before_the_weights_and_from_the_chief_alone():
    rig = Rig(1, 2, seed=False, still=True)
    assert rig.seed(1) == [SeedRefuse(1, SEED, Why.STILL_DUE)]
    assert rig.seed(2, still=True) == [SeedRefuse(2, SEED, Why.NOT_CHIEF, still=True)]
    assert rig.seed(3, still=True) == [SeedRefuse(3, SEED, Why.FENCED, still=True)]
    assert rig.seed(1, still=True) == [SeedAck(1, SEED, still=True)]
    assert why(rig.push(1, 0, 5)) is Why.UNSEEDED
    assert rig.seed(1) == [SeedAck(1, SEED)]
    lsn(rig.push(1, 0, 5))


def test_still_tensors_are_as_they_were_once_their_chief_has_brought_the_weights():
    rig = Rig(1, seed=False, still=True)
    assert rig.seed(1, 71, still=True) == [SeedAck(1, 71, still=True)]
    assert rig.seed(1, 72, still=True) == [SeedAck(1, 72, still=True)]
    rig.seed(1)
    assert rig.seed(1, 71, still=True) == [SeedRefuse(1, 71, Why.SEEDED, still=True)]
    assert rig.seed(1, 72, still=True) == [SeedAck(1, 72, still=True)], "the same does no harm"


def test_the_next_chief_brings_its_own_still_tensors_until_the_first_push():
    rig = Rig(1, 2, seed=False, still=True)
    rig.seed(1, 71, still=True)
    rig.members(2)
    assert rig.seed(2, 72, still=True) == [SeedAck(2, 72, still=True)]
    rig.seed(2)
    rig.members(3)
    assert rig.seed(3, 73, still=True) == [SeedAck(3, 73, still=True)]
    rig.push(3, 0, 5)
    rig.members(4)
    assert rig.seed(4, 74, still=True) == [SeedRefuse(4, 74, Why.SEEDED, still=True)]


def test_still_tensors_are_acknowledged_once_they_are_stored():
    rig = Rig(1, is_late=True, seed=False, still=True)
    rig.stored()
    assert rig.seed(1, still=True) == rig.seed(1, still=True) == []
    assert rig.seed(1) == []
    assert rig.stored(2) == 2 * [SeedAck(1, SEED, still=True)]
    assert rig.stored() == [SeedAck(1, SEED)]
