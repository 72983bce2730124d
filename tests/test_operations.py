"""docs/operations.md: its commands are understood, and what it says of files and metrics holds."""

import json
import re
import shlex
from pathlib import Path

import pytest
from coordinator.statuses import eventful
from prometheus_client import generate_latest

from hubring.cli import app
from hubring_coordinator.metrics import registry

DOCS = Path(__file__).parents[1] / "docs" / "operations.md"
COMMANDS = re.findall(r"^\$ (hubring .*)$", DOCS.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_there_are_commands():
    assert {command.split()[1] for command in COMMANDS} == {"demo", "coordinator", "top"}


def test_every_metric_that_it_names_exists():
    text = generate_latest(registry(eventful)).decode()
    table = DOCS.read_text().split("| metric |")[1].split("\n\n")[0]
    named = set(re.findall(r"hubring_\w+", table))
    assert len(named) > 15
    assert not [name for name in named if name not in text]


def test_the_files_that_it_names_exist():
    for name in re.findall(r"`(deploy/[\w./]+)`", DOCS.read_text()):
        json.loads((DOCS.parents[1] / name).read_text())
