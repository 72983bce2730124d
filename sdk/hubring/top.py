"""`hubring top`: the page's view of a running cluster, in a terminal. Loads no torch."""

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hubring.control import Control
from hubring_common.errors import HubringError
from hubring_common.timing import Timing
from hubring_coordinator.page.diagnosis import duration
from hubring_coordinator.page.history import COLUMNS, History, sample
from hubring_coordinator.page.view import view

EVERY = 1.0
"""Seconds between two looks."""
STYLES = {"good": "green", "wait": "cyan", "warn": "yellow", "bad": "bold red"}
STATES = {"active": "green", "silent": "yellow", "dead": "red", "finished": "dim"}
BARS = "▁▂▃▄▅▆▇█"
MEMBERS, EVENTS, WIDTH = 16, 6, 48
"""Rows and characters: what fits into a terminal."""


class Top:
    """Use as a context manager. Its history begins with its first look."""

    def __init__(self, control: Control, timing: Timing) -> None:
        self._control, self._timing, self._history = control, timing, History()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._control.close()

    def look(self) -> dict[str, Any]:
        """The page's view, with the history since the first look. Raises as Control does."""
        status = self._control.status()
        self._history.add(sample(status))
        shown = view(status, self._history, self._timing)
        return {**shown, "history": self._history.as_json()}

    def show(self, console: Console) -> None:
        """On a terminal until q, Ctrl-C, or the end of the run; elsewhere once."""
        if not console.is_terminal:
            console.print(drawn(self.look()))
            return
        shown = self.look()
        with (
            contextlib.suppress(KeyboardInterrupt),
            _keys() as wants_out,
            Live(drawn(shown), console=console, auto_refresh=False) as live,
        ):
            while not wants_out(EVERY) and (shown := self._again(shown)):
                live.update(drawn(shown), refresh=True)

    def _again(self, before: dict[str, Any]) -> dict[str, Any]:
        """The next view, or the last one with since when there is none; {}: it is over."""
        try:
            return self.look()
        except HubringError:
            if before["is_over"]:
                return {}
            return {**before, "away": before.get("away", time.strftime("%H:%M:%S"))}


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits up to so many seconds and says whether q was pressed."""
    if not sys.stdin.isatty():
        yield time.sleep
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _pressed_q
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed_q(seconds: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and sys.stdin.read(1) in {"q", "Q"}


# --- drawing: from the view alone ----------------------------------------------------------


def drawn(shown: dict[str, Any]) -> Group:
    parts: list[RenderableType] = [_head(shown), _diagnosis(shown), _lines(shown), _members(shown)]
    if shown["shards"]:
        parts.append(_shards(shown))
    parts.append(_data(shown))
    parts.append(_events(shown))
    return Group(*parts)


def safe(text: str) -> str:
    """Members' words could move the cursor, or worse."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def sparkline(values: list[float | None], width: int = WIDTH) -> str:
    known = [value for value in values[-width:] if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(BARS[int((value - low) / span * 7) if span else 0] for value in known)


def _head(shown: dict[str, Any]) -> Text:
    parts = [
        f"run {shown['run']}  {shown['mode']}  {shown['state']}",
        f"step {shown['steps']}  epoch {shown['epoch']}",
        duration(shown["seconds"]),
    ]
    if shown["eta"]:
        parts.append(f"{duration(shown['eta']['seconds'])} left until {shown['eta']['goal']}")
    line = Text(safe("  ".join(parts)), style="bold")
    if "away" in shown:
        line.append(f"  coordinator away since {shown['away']}", style="bold red")
    return line


def _diagnosis(shown: dict[str, Any]) -> Text:
    found = shown["diagnosis"]
    return Text(safe(found["words"]), style=STYLES[found["level"]])


def _lines(shown: dict[str, Any]) -> Table:
    rows = shown["history"]["rows"]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in (("loss", _figure(shown["loss"])), ("rate", _figure(shown["rate"]))):
        values = [row[COLUMNS.index(name)] for row in rows]
        table.add_row(name, value, Text(sparkline(values), style="cyan"))
    return table


def _members(shown: dict[str, Any]) -> Table:
    table = _table("member", "state", "steps", "ex/s", "loss", "wait", "stale", "heard", "why")
    for m in shown["members"][:MEMBERS]:
        why = "; ".join(filter(None, (m["why"], m.get("waiting_for", ""))))
        is_gone = m["state"] in {"dead", "finished"}
        table.add_row(
            safe(m["name"]),
            Text(m["state"], style=STATES.get(m["state"], "")),
            *(_figure(m.get(name)) for name in ("steps", "rate", "loss")),
            f"{m['wait_share']:.0%}" if "wait_share" in m else "",
            _figure(m.get("staleness_mean")),
            "" if is_gone else f"{m['last_heard']:.1f} s",
            Text(safe(why)),
        )
    if (more := shown["members_left_out"] + max(0, len(shown["members"]) - MEMBERS)) > 0:
        table.add_row(f"and {more} more")
    return table


def _shards(shown: dict[str, Any]) -> Table:
    table = _table("shard", "server", "MB", "version", "apply ms", "queue", "again", "refused")
    for s in shown["shards"]:
        counts = (str(s[name]) for name in ("queue", "duplicates", "refused"))
        size, each = f"{s['nbytes'] / 1e6:.2f}", _figure(s["apply_ms"])
        table.add_row(str(s["shard"]), safe(s["server"]), size, str(s["version"]), each, *counts)
    return table


def _data(shown: dict[str, Any]) -> Text:
    data = shown["data"]
    parts = [f"{data['epochs_done']} epochs done"]
    going = [e for e in data["epochs"] if e["done"] < e["batches"]]
    parts += [
        f"epoch {e['epoch']}: {e['done']} done, {e['leased']} leased, {e['left']} left"
        for e in going[:3]
    ]
    if data["set_aside_count"]:
        parts.append(f"{data['set_aside_count']} batches set aside")
    parts += [f"{name} {_figure(value)}" for name, value in list(shown["metrics"].items())[:6]]
    return Text(safe("  ".join(parts)), style="dim")


def _events(shown: dict[str, Any]) -> Table:
    """The first error, then the last events, the newest first."""
    table = Table(box=None, pad_edge=False, show_header=False)
    last = shown["events"][-EVENTS:][::-1]
    first = shown["first_error"]
    for event in [*([first] if first and first not in last else []), *last]:
        style = "red" if event["is_error"] else "dim"
        when = duration(event["seconds"])
        table.add_row(Text(when, style="dim"), Text(safe(event["text"]), style=style))
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    words = {"member", "state", "server", "why"}
    for title in titles:
        table.add_column(title, justify="left" if title in words else "right")
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
