"""Findings as a person reads them, and as JSON."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hubring.doctor.finding import Finding, Grade, exit_code

STYLES = {Grade.OK: "green", Grade.NOTE: "yellow", Grade.PROBLEM: "bold red"}


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "findings": [
            {
                "subject": each.subject,
                "about": each.about,
                "grade": each.grade.name.lower(),
                "fact": each.fact,
                "todo": each.todo,
            }
            for each in findings
        ],
        "exit_code": exit_code(findings),
    }


def draw(findings: Sequence[Finding], console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    subject = ""
    for each in findings:
        if each.subject != subject:
            subject = each.subject
            table.add_row("", Text(subject, style="dim"), "")
        grade = Text(each.grade.name.lower(), style=STYLES[each.grade])
        table.add_row(grade, each.about, Text(each.fact))
        if each.todo:
            table.add_row("", "", Text(f"-> {each.todo}", style=STYLES[each.grade]))
    console.print(table)
    console.print(Text(_total(findings)))


def _total(findings: Sequence[Finding]) -> str:
    problems = sum(each.grade is Grade.PROBLEM for each in findings)
    notes = sum(each.grade is Grade.NOTE for each in findings)
    return f"{len(findings)} checks: {_count(problems, 'problem')}, {_count(notes, 'note')}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
