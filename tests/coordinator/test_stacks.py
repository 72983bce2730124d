"""The members' stacks: who is asked, what is waited for, who is named as silent."""

from coordinator.harness import Cluster, Member, training

from hubring_common.bounded import STACKS_LIMIT
from hubring_common.errors import Busy
from hubring_common.messages import DumpStacks, MemberStacks, Stacks, StacksRequest
from hubring_coordinator.machine import events
from hubring_coordinator.machine.stacks import ANSWER, AT_ONCE


def dump(member: Member, text: str) -> None:
    """Answer the latest DumpStacks that it heard."""
    asked = member.last(DumpStacks)
    member.cluster.do(events.StacksDumped(member.stream, asked.request, text))


def answer(cluster: Cluster) -> Stacks | None:
    return cluster.answers.get(cluster.last_call)


def test_it_is_answered_as_soon_as_all_have_answered():
    cluster, (server,), (first, second) = training(workers=2)
    assert cluster.call(StacksRequest()) is None
    for member, text in ((second, "c"), (server, "a"), (first, "b")):
        assert answer(cluster) is None
        dump(member, text)
    names = ("server-0", "worker-0", "worker-1")
    expected = tuple(map(MemberStacks, names, "abc"))
    assert answer(cluster) == Stacks(expected)


def test_nobody_there():
    assert Cluster().call(StacksRequest()) == Stacks(())


def test_a_silent_member_is_named_after_half_a_lease():
    cluster, (server,), (worker,) = training(timeout=10)
    cluster.call(StacksRequest())
    dump(server, "a")
    cluster.wait(4.5, beating=[server])
    assert answer(cluster) is None
    cluster.wait(0.5, beating=[server])
    heard, silent = answer(cluster).members
    assert heard == MemberStacks("server-0", "a")
    assert silent == MemberStacks("worker-0", why="no answer for 5.0 s, last heard 5.0 s ago")
    cluster.do(events.StacksDumped(worker.stream, cluster.last_call, "late"))  # nobody's any more


def test_a_member_without_a_stream_is_asked_when_it_has_one_again():
    cluster, (server,), (worker,) = training()
    worker.detach()
    cluster.call(StacksRequest())
    dump(server, "a")
    worker.reattach()
    dump(worker, "b")
    assert answer(cluster).members[1] == MemberStacks("worker-0", "b")
    worker.detach()
    cluster.call(StacksRequest())
    dump(server, "a")
    cluster.wait(5, beating=[server])
    assert answer(cluster).members[1].why.startswith("its stream is broken, no answer for 5.0 s")


def test_who_leaves_meanwhile_is_not_waited_for():
    cluster, (server,), (first, second) = training(workers=2)
    cluster.call(StacksRequest())
    asked = cluster.last_call
    dump(server, "a")
    dump(first, "b")
    second.leave("LeaseLost", "it slept")
    assert cluster.answers[asked].members[2].why.startswith("it is gone")


def test_a_member_is_asked_once_a_call():
    cluster, (server,), (worker,) = training()
    cluster.call(StacksRequest())
    cluster.wait(2, beating=[server, worker])
    assert sum(isinstance(order, DumpStacks) for order in worker.heard) == 1
    dump(worker, "for the first")
    cluster.call(StacksRequest())
    dump(worker, "for the second")
    dump(server, "a")
    assert answer(cluster).members[1].text == "for the second"


def test_few_calls_wait_at_once():
    cluster, _, _ = training()
    for _ in range(AT_ONCE):
        assert cluster.call(StacksRequest()) is None
    assert isinstance(cluster.call(StacksRequest()), Busy)


def test_the_answer_fits_into_one_message():
    workers = 70
    cluster, (server,), crew = training(workers=workers)
    cluster.call(StacksRequest())
    for member in (server, *crew):
        dump(member, "é" * STACKS_LIMIT)
    texts = [each.text for each in answer(cluster).members]
    sizes = [len(text.encode()) for text in texts]
    assert len(sizes) == workers + 1
    assert max(sizes) <= ANSWER // (workers + 1) < STACKS_LIMIT
    assert min(sizes) > 0.99 * ANSWER // (workers + 1)
    assert all(f"of {2 * STACKS_LIMIT} bytes are shown" in text for text in texts)


def test_also_when_the_run_is_over():
    cluster, (server,), (worker,) = training()
    cluster.stop("enough", at_once=True)
    cluster.call(StacksRequest())
    dump(server, "a")
    dump(worker, "b")
    assert [each.text for each in answer(cluster).members] == ["a", "b"]
