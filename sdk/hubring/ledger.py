"""`hubring status --ledger`: of each batch, who trained it, when, and with which push."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hubring.inspection import reach
from hubring_common import plain
from hubring_common.messages import Ledger, LedgerEntry


def ledger(coordinator: str, token_file: Path | None, runs: Path) -> list[Ledger]:
    """A page an epoch. Raises UsageError where no cluster is named and none runs below `runs`."""
    with reach(coordinator, token_file, runs) as control:
        epochs = [status.epoch for status in control.status().epochs]
        return [control.ledger(epoch) for epoch in range(max(epochs, default=-1) + 1)]


def as_json(pages: list[Ledger]) -> dict[str, Any]:
    return {"epochs": plain.dump(pages)}


def draw(pages: list[Ledger], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("epoch", "batches", "worker", "session", "push", "taken", "done"):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for page in pages:
        for entry in page.entries:
            table.add_row(str(page.epoch), *_cells(entry))
    console.print(table)
    for line in _missing(pages):
        console.print(Text(line))


def _cells(entry: LedgerEntry) -> tuple[str, ...]:
    batches = _range(entry.first, entry.count)
    pushes = (
        "earlier" if entry.confessed else _range(entry.seq, 1 if entry.together else entry.count)
    )
    times = f"{entry.taken:.1f} s", f"{entry.done:.1f} s"
    return batches, entry.worker, str(entry.session), pushes, *times


def _missing(pages: list[Ledger]) -> Iterator[str]:
    for page in pages:
        for span in page.missing:
            yield f"epoch {page.epoch}: {_range(span.first, span.count)} not done"
        for aside in page.set_aside:
            by = ", ".join(aside.workers)
            yield f"epoch {aside.epoch}: batch {aside.batch} is set aside: {by} died with it"


def _range(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"
