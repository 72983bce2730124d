"""The house keeps its shape: sizes, the exported names, who loads torch, what the wheel holds."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import hubring

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "coordinator", "server", "worker", "sdk", "examples", "benchmarks", "deploy")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def functions():
    """(lines without the docstring, where) of every function outside the tests."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                lines = node.end_lineno - node.lineno + 1
                lines -= doc.end_lineno - doc.lineno + 1 if doc else 0
                yield lines, f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_no_function_is_too_long():
    sizes = sorted(functions())
    sys.stdout.write(
        f"{len(sizes)} functions, median {statistics.median(s for s, _ in sizes)} lines\n"
    )
    assert not [(size, where) for size, where in sizes if size > LONGEST_FUNCTION]


def test_no_file_is_too_long():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    sizes = {file: len(file.read_text().splitlines()) for file in (*SOURCES, *tests)}
    sys.stdout.write(f"{len(sizes)} files, median {statistics.median(sizes.values())} lines\n")
    assert not {str(file): size for file, size in sizes.items() if size > LONGEST_FILE}


def test_every_module_says_what_lives_there():
    assert not [str(file) for file in SOURCES if not ast.get_docstring(ast.parse(file.read_text()))]


def test_no_decision_looks_at_the_time_of_day():
    """A clock that is set back an hour must take no lease: only what is shown has a time of day."""
    shown = {"coordinator/hubring_coordinator/scalars.py", "sdk/hubring/local.py"}
    shown |= {"sdk/hubring/top.py", "coordinator/hubring_coordinator/process.py"}
    names = ("time.time(", "time.time_ns(", "datetime", "time.strftime(", "localtime(")
    found = {str(p.relative_to(ROOT)) for p in SOURCES if any(n in p.read_text() for n in names)}
    assert found <= shown | {"common/hubring_common/logs.py"}


def test_the_exported_names():
    assert sorted(hubring.__all__) == ["HubringError", "Run", "__version__", "init"]
    for name in hubring.__all__:
        assert getattr(hubring, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hubring.nothing


@pytest.mark.parametrize(
    "module",
    [
        "hubring",
        "hubring.cli",
        "hubring.launch",
        "hubring.inspection",
        "hubring.top",
        "hubring_coordinator.process",
    ],
)
def test_torch_is_not_loaded_where_it_is_not_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_the_distributions():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == hubring.__version__
