"""`hubring status`: a running cluster's status, fetched and drawn. Loads no torch."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hubring.control import CALL_TIMEOUT, Control
from hubring.display import members
from hubring.local import find_running
from hubring.tokens import read_token
from hubring_common import plain
from hubring_common.errors import UsageError
from hubring_common.messages import Status
from hubring_common.report import progress_line


def status(coordinator: str, token_file: Path | None, runs: Path) -> Status:
    """Raises UsageError where no cluster is named and none runs below `runs`."""
    with reach(coordinator, token_file, runs) as control:
        return control.status()


def reach(
    coordinator: str, token_file: Path | None, runs: Path, timeout: float = CALL_TIMEOUT
) -> Control:
    """The cluster that is named, or else the newest below `runs`. Raises UsageError."""
    if not coordinator:
        if (found := find_running(runs)) is None:
            fact = f"no cluster runs below {runs}"
            raise UsageError(fact, todo="name one with --coordinator HOST:PORT and --token-file")
        coordinator, token_file = found
    return Control(coordinator, read_token(token_file), timeout)


def as_json(shown: Status) -> dict[str, Any]:
    """`messages.Status` as plain data: enums by name, NaN as null."""
    data: dict[str, Any] = plain.finite(plain.dump(shown))
    return data


def draw(shown: Status, console: Console) -> None:
    console.print(Text(f"run {shown.run}  {shown.mode}  {shown.state.name.lower()}  {shown.why}"))
    console.print(Text(progress_line(shown)))
    console.print(members(shown))
    console.print(epochs(shown))


def epochs(shown: Status) -> Table:
    """A row an epoch: its batches done, leased, left."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("epoch", "batches", "done", "leased", "left"):
        table.add_column(column, justify="right")
    for e in shown.epochs[-10:]:
        table.add_row(*map(str, (e.epoch, e.batches, e.done, e.leased, e.left)))
    return table
