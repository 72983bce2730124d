"""Statuses of runs as a coordinator would tell them, for the page's tests."""

from hubring_common.messages import (
    EpochStatus,
    EvaluationStatus,
    Goal,
    MemberState,
    MemberStatus,
    Role,
    RunEvent,
    RunState,
    SetAside,
    ShardProgress,
    ShardStatus,
    Status,
    WorkerProgress,
)

ACTIVE, DEAD, FINISHED = MemberState.ACTIVE, MemberState.DEAD, MemberState.FINISHED


def worker(number=0, *, state=ACTIVE, heard=0.4, why="", host="alpha", **progress) -> MemberStatus:
    usual = {"steps": 100, "samples": 3200, "loss": 0.5, "rate": 100.0, "pushes": 100}
    shown = WorkerProgress(**{**usual, **progress})
    name = f"worker-{number}"
    return MemberStatus(
        name, Role.WORKER, state, 10 + number, host, 4000 + number, heard, why, shown
    )


def server(number=0, *, state=ACTIVE, heard=0.3, why="") -> MemberStatus:
    name = f"server-{number}"
    return MemberStatus(name, Role.SERVER, state, 1 + number, "beta", 300 + number, heard, why)


def shard(number=0, *, applied=200, seconds=0.2, queue=0, **more) -> ShardStatus:
    counts = {"nbytes": 4_500_000, "version": applied + 3, "applied": applied, "queue": queue}
    progress = ShardProgress(shard=number, apply_seconds=seconds, **{**counts, **more})
    return ShardStatus(number, f"server-{number}", progress)


def status(**more) -> Status:
    """Two workers and two servers that train without trouble."""
    usual = {
        "run": "r1",
        "state": RunState.TRAINING,
        "mode": "async",
        "seconds": 60.0,
        "first_step_seconds": 4.0,
        "members": (server(0), server(1), worker(0), worker(1)),
        "shards": (shard(0), shard(1)),
        "epochs": (EpochStatus(0, 100, 100, 0, 0), EpochStatus(1, 100, 40, 8, 52)),
        "boot": 1,
    }
    return Status(**{**usual, **more})


def its_members(steps, word):
    return (
        server(0),
        server(1),
        worker(
            0,
            steps=steps // 2,
            loss=0.31,
            rate=812.0,
            wait_share=0.11,
            host=f"alpha{word}",
            staleness=(400, 2100, 3000, 900, 60),
            staleness_sum=9000,
            staleness_max=12,
            pushes=6460,
        ),
        worker(
            1,
            steps=steps // 3,
            loss=0.34,
            rate=790.0,
            wait_share=0.14,
            waiting_for=f"waiting 1 s for server-1{word}",
            staleness=(300, 1500, 2400, 800, 90),
            staleness_sum=8000,
            staleness_max=14,
            pushes=5090,
        ),
        worker(2, state=DEAD, heard=500.0, why=f"its lease ended{word}", steps=steps // 6),
        worker(3, heard=4.2, steps=20, loss=0.4, rate=310.0, wait_share=0.12),
    )


def its_events(word):
    return (
        RunEvent(2.1, "joined", "server-0", "server-0 joined as session 1 from beta"),
        RunEvent(3.0, "joined", "worker-0", f"worker-0 joined as session 3 from alpha{word}"),
        RunEvent(9.0, "training", "worker-0", "run r1 is training: worker-0 seeded 2 shards"),
        RunEvent(700.0, "died", "worker-2", f"worker-2 is dead: its lease ended{word}"),
        RunEvent(900.0, "joined", f"worker-3{word}", "worker-3 joined as session 7 from gamma"),
        RunEvent(1000.0, f"odd{word}", "", f"something new{word}"),
    )


def its_evaluations(steps, word):
    return (
        EvaluationStatus(1, 40, 40, 500.0, steps // 3, {f"accuracy{word}": 0.91, "loss": 0.4}),
        EvaluationStatus(
            2, 40, 40, 1200.0, 4 * steps // 5, {f"accuracy{word}": 0.957, "loss": 0.3}
        ),
        EvaluationStatus(3, 40, 12),
    )


def eventful(seconds=1500.0, steps=12_000, word="") -> Status:
    """Everything that a page can show, with `word` in every text that is not ours."""
    done = tuple(EpochStatus(n, 400, 400, 0, 0) for n in range(27))
    return status(
        seconds=seconds,
        members=its_members(steps, word),
        shards=(
            shard(0, applied=steps, seconds=14.0),
            shard(1, applied=steps, seconds=19.0, queue=1, duplicates=4),
        ),
        epochs=(*done, EpochStatus(27, 400, 390, 10, 0), EpochStatus(28, 400, 121, 24, 255)),
        metrics={f"accuracy{word}": 0.957},
        events=its_events(word),
        evaluations=its_evaluations(steps, word),
        goals=(
            Goal("steps 20000", 20_000, steps),
            Goal(f"accuracy{word} at least 0.99", 0.99, 0.957),
        ),
        set_aside=(SetAside(12, 77, ("worker-2", "worker-5")),),
        boot=2,
    )
