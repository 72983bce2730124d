"""The pages' commands are understood, and the snippets on stopping mean what they say."""

import re
import shlex
from pathlib import Path

import pytest

from hubring.cli import app
from hubring_worker.stopping import rules_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, command)
    for page in PAGES
    for command in re.findall(r"^\$ (hubring .*)$", page.read_text(), re.MULTILINE)
]
STOPPING = (ROOT / "docs" / "stopping.md").read_text()
RULES = re.findall(r"^run\.(stop_when\(.*?\))(?: +#.*)?$", STOPPING, re.MULTILINE)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_understood(page, command):
    words = shlex.split(command, comments=True)[1:]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_pages_have_commands():
    assert {page for page, _ in COMMANDS} >= {"operations.md", "stopping.md"}


@pytest.mark.parametrize("call", RULES)
def test_every_rule_on_the_page_is_one(call):
    (rule,) = eval(call, {"stop_when": rules_of})
    assert rule.kind in {"epochs", "steps", "seconds", "reaches", "stalls"}


def test_the_page_on_stopping_shows_each_kind_of_rule():
    kinds = {rule.kind for call in RULES for rule in eval(call, {"stop_when": rules_of})}
    assert kinds == {"epochs", "steps", "seconds", "reaches", "stalls"}


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme]
