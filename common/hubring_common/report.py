"""A run in numbers and words: totals, the progress line, the outcome.

Pure: from a `Status` to text and plain data.
"""

import math
from collections.abc import Iterable
from typing import Any

from hubring_common.messages import MemberStatus, Role, RunState, Status


def workers(status: Status) -> list[MemberStatus]:
    return [m for m in status.members if m.role is Role.WORKER]


def totals(status: Status) -> dict[str, Any]:
    """The cluster's counts over all its workers, dead ones among them."""
    progress = [m.worker for m in workers(status) if m.worker is not None]
    pushes = sum(p.pushes for p in progress)
    stale = sum(p.staleness_sum for p in progress)
    samples = sum(p.samples for p in progress)
    trained = status.seconds - status.first_step_seconds
    return {
        "steps": sum(p.steps for p in progress),
        "epochs": status.epochs_done,
        "samples": samples,
        "examples_per_second": round(samples / trained, 1) if samples and trained > 0 else 0.0,
        "staleness_mean": round(stale / pushes, 3) if pushes else 0.0,
        "staleness_max": max((p.staleness_max for p in progress), default=0),
        "pushes": pushes,
        "duplicates": sum(s.progress.duplicates for s in status.shards),
    }


def summary(status: Status, **launch: Any) -> dict[str, Any]:
    """The object that `--json` prints. `launch`: what the launcher alone knows."""
    return {
        "run": status.run,
        "state": status.state.name.lower(),
        "why": status.why,
        "mode": status.mode,
        **totals(status),
        **{name: value if math.isfinite(value) else None for name, value in status.metrics.items()},
        "model": status.model,
        "ledger": status.ledger,
        **launch,
    }


def progress_line(status: Status) -> str:
    """`step 812  loss 1.83  412 ex/s  stale 0.9  wait 8 %`, or what the cluster waits for."""
    if status.state is RunState.FORMING:
        return status.waiting_for or "forming"
    progress = [m.worker for m in workers(status) if m.worker is not None]
    counts = totals(status)
    parts = [f"step {counts['steps']}", f"epoch {max((p.epoch for p in progress), default=0)}"]
    if losses := [p.loss for p in progress if math.isfinite(p.loss)]:
        parts.append(f"loss {mean(losses):.3f}")
    parts.append(f"{sum(p.rate for p in progress):.0f} ex/s")
    parts.append(f"stale {counts['staleness_mean']:.2f}")
    parts.append(f"wait {100 * mean([p.wait_share for p in progress]):.0f} %")
    if status.waiting_for:
        parts.append(status.waiting_for)
    return "  ".join(parts)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def outcome(status: Status, folder: str) -> str:
    """How the run ended, in one line, and where to look."""
    words = f"run {status.run} {status.state.name.lower()}"
    if status.why:
        words += f": {status.why}"
    return (
        f"{words}; the model lies in {status.model}" if status.model else f"{words}; see {folder}"
    )


def figures(status: Status, seconds: float) -> str:
    """What the run reached and how fast, in one line. `seconds`: the time to show for all of it."""
    counts = totals(status)
    parts = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in status.metrics.items()]
    parts += [
        f"{seconds:.1f} s",
        f"{counts['steps']} steps",
        f"{counts['epochs']} epochs",
        f"{counts['examples_per_second']:.0f} examples/s",
        f"staleness {counts['staleness_mean']:.2f} mean, {counts['staleness_max']} most",
    ]
    return "  ".join(parts)
