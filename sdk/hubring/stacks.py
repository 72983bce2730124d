"""`hubring stacks`: what every process of a running cluster does now. Loads no torch."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hubring.inspection import reach
from hubring_common import plain
from hubring_common.errors import UsageError
from hubring_common.messages import MemberStacks
from hubring_common.timing import Timing


def stacks(
    member: str, coordinator: str, token_file: Path | None, runs: Path, timing: Timing
) -> tuple[MemberStacks, ...]:
    """Of all, or of `member`. Raises UsageError where there is no such cluster or member."""
    with reach(coordinator, token_file, runs, timing.call()) as control:
        found = control.stacks().members
    chosen = tuple(each for each in found if member in {"", each.member})
    if not chosen:
        names = ", ".join(each.member for each in found)
        raise UsageError(f"there is no member {member!r}", todo=f"there are {names}")
    return chosen


def as_json(shown: tuple[MemberStacks, ...]) -> dict[str, Any]:
    return {"members": plain.dump(shown)}


def draw(shown: tuple[MemberStacks, ...], console: Console) -> None:
    """Who is silent comes last, where it is seen."""
    for each in sorted(shown, key=lambda each: bool(each.why)):
        console.print(Text(f"{each.member}{': ' if each.why else ''}{each.why}", style="bold"))
        if each.text:
            console.print(Text(each.text.rstrip("\n")), soft_wrap=True)
        console.print()
