"""What a person sees of a run: one progress line for the cluster, then a summary.

On a terminal the line is redrawn; elsewhere a new one is written every few seconds, and only
where it says something new.
"""

import time
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hubring_common.messages import Role, RunState, ShardProgress, Status
from hubring_common.report import figures, outcome, progress_line, workers

PLAIN_EVERY = 5.0
"""Seconds between progress lines where nothing can be redrawn."""


class Display:
    """Writes to `console`. Use as a context manager around a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._last, self._written = "", time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """A line above the progress line."""
        self._console.print(Text(line))

    def update(self, status: Status) -> None:
        line = progress_line(status)
        if self._console.is_terminal:
            self._live.update(Text(line, style="cyan", no_wrap=True), refresh=True)
        elif line != self._last and time.monotonic() - self._written >= PLAIN_EVERY:
            self._console.print(Text(line))
            self._last, self._written = line, time.monotonic()

    def finish(self, status: Status, folder: Path, seconds: float) -> None:
        """The summary: how it ended, in numbers, and what each member did."""
        self._live.stop()
        if status.traceback:
            self._console.print(Text(f"\n{status.who} raised:\n{status.traceback}", style="red"))
        style = "red" if status.state is RunState.FAILED else "green"
        self._console.print(Text(outcome(status, str(folder)), style=style))
        if status.state is not RunState.FAILED:
            self._console.print(Text(figures(status, seconds)))
        if status.ledger:
            self._console.print(Text(f"ledger  {status.ledger}"))
        self._console.print(members(status))


def members(status: Status) -> Table:
    """A row a member."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("member", "state", "did"):
        table.add_column(column)
    for member in workers(status):
        did = "nothing yet"
        if (w := member.worker) is not None:
            did = f"{w.steps} steps, {w.samples} samples, most stale {w.staleness_max}"
        state = member.state.name.lower()
        table.add_row(member.name, state, f"{did}  {member.why}".rstrip())
    states = {m.name: m.state.name.lower() for m in status.members if m.role is Role.SERVER}
    for shard in status.shards:
        p = shard.progress
        did = f"shard {shard.shard}: {p.nbytes} bytes at version {p.version}, {p.applied} records"
        table.add_row(shard.server, states.get(shard.server, ""), f"{did}, {_each(p)}")
    return table


def _each(progress: ShardProgress) -> str:
    milliseconds = 1000 * progress.apply_seconds / max(1, progress.applied)
    return f"{milliseconds:.2f} ms each"
