"""The doctor's checks of a machine, each where it is not well."""

import os
import socket
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from hubring.doctor import cgroup, cluster, examine, machine, network, show, software
from hubring.doctor.finding import Finding, Grade, exit_code, size
from hubring_common.errors import TimedOut, Unauthorized, Unreachable, UsageError


def problem(error=None):
    return Finding("a", "b", "c", Grade.PROBLEM, "d", error)


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([Finding("a", "b", "c"), Finding("a", "b", "c", Grade.NOTE)], 0),
        ([problem()], 2),
        ([problem(), problem(Unauthorized)], 22),
        ([problem(Unreachable), problem(Unauthorized)], 10),
    ],
)
def test_exit_codes(findings, code):
    assert exit_code(findings) == code
    assert show.as_json(findings)["exit_code"] == code


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes(nbytes, words):
    assert size(nbytes) == words


# --- software ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "asked", "fits"),
    [
        ("2.13.0+cpu", "<3,>=2.11", True),
        ("2.10.9", "<3,>=2.11", False),
        ("3.0", "<3,>=2.11", False),
        ("7.36.2", "<8,>=6.31.1", True),
        ("6.31.0", "<8,>=6.31.1", False),
        ("1.76.0rc1", ">=1.76", True),
        ("1.2", "", True),
    ],
)
def test_versions(version, asked, fits):
    assert software._fits(version, asked) == fits


def test_everything_installed_fits_and_the_generated_code_runs():
    findings = list(software.check())
    assert {f.grade for f in findings} == {Grade.OK}
    about = {f.about: f.fact for f in findings}
    assert about["protobuf"].startswith(metadata.version("protobuf"))
    assert about["generated code"].startswith("made by protobuf 6.31.1; here runs ")


def test_old_and_missing_libraries_are_problems(monkeypatch):
    monkeypatch.setattr(software, "installed_version", {"protobuf": "5.0"}.get)
    found = {f.about: f for f in software.check()}
    assert found["grpcio"].fact == "not installed (needs >=1.76)"
    assert found["grpcio"].grade is found["protobuf"].grade is Grade.PROBLEM
    assert found["generated code"].grade is Grade.PROBLEM
    assert "pip install 'protobuf>=6.31.1'" in found["generated code"].todo


def test_from_source_alone_as_in_the_images(monkeypatch):
    def not_there(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(software.metadata, "metadata", not_there)
    found = {f.about: f for f in software.check()}
    assert found["torch"].fact == f"{metadata.version('torch')} (needs any)"
    assert {f.grade for f in found.values()} == {Grade.OK}
    monkeypatch.setattr(software, "installed_version", {"protobuf": "7.0"}.get)
    found = {f.about: f for f in software.check()}
    assert found["torch"].grade is Grade.PROBLEM


def test_extras_are_named(monkeypatch):
    requirements = ("lightning>=2.6; extra == 'lightning'", "pytest>=9; extra == 'dev'")
    (found,) = software._extras(("lightning", "dev"), requirements)
    assert found.about == "extra lightning" and found.grade is Grade.OK
    assert found.fact == f"lightning {metadata.version('lightning')}"
    monkeypatch.setattr(software, "installed_version", {}.get)
    (found,) = software._extras(("lightning", "dev"), requirements)
    assert found.fact == "lightning not installed, optional: pip install 'hubring[lightning]'"


# --- machine -------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes files of a control group: name -> text."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")

    def write(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            file = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

    return write


def test_no_limits(groups):
    groups("0::/\n", cpu_dot_max="max 100000", memory_dot_max="max", memory_dot_current="1")
    assert (cgroup.cpu_quota(), cgroup.memory(), cgroup.processes()) == (None, None, None)


def test_the_narrowest_limit_on_the_way_to_the_own_group(groups):
    groups(
        "0::/a/b\n",
        a__cpu_dot_max="150000 100000",
        a__b__cpu_dot_max="300000 100000",
        a__memory_dot_max="max",
        a__memory_dot_current="5",
        a__b__memory_dot_max="1000",
        a__b__memory_dot_current="400",
        a__pids_dot_max="77",
    )
    assert cgroup.cpu_quota() == 1.5
    assert cgroup.memory() == cgroup.Memory(1000, 400)
    assert cgroup.processes() == 77


def test_version_1(groups):
    groups(
        "4:memory:/\n3:cpu,cpuacct:/c\n",
        cpu__c__cpu_dot_cfs_quota_us="50000",
        cpu__c__cpu_dot_cfs_period_us="100000",
        memory__memory_dot_limit_in_bytes=str(9223372036854771712),
        memory__memory_dot_usage_in_bytes="7",
    )
    assert cgroup.cpu_quota() == 0.5
    assert cgroup.memory() is None


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 0.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = machine.cores()
    assert found.grade is Grade.NOTE
    assert found.fact.startswith("0.5 cores (the cgroup's limit")
    assert "OMP_NUM_THREADS=1 or less" in found.todo


def test_a_folder_that_is_to_be_made_and_one_that_cannot_be(tmp_path):
    assert machine._folder("runs", tmp_path / "a" / "b").grade is Grade.OK
    file = tmp_path / "file"
    file.touch()
    found = machine._folder("runs", file / "runs")
    assert found.grade is Grade.PROBLEM and "cannot be written" in found.todo


def test_no_shared_memory(tmp_path):
    assert machine._shared_memory(tmp_path / "none").grade is Grade.NOTE


def test_a_small_limit_of_files(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    assert machine._files().grade is Grade.NOTE
    assert machine._files().fact == "256 open files a process (at most 4096)"
    assert machine._threads().grade is Grade.NOTE


# --- network and token ---------------------------------------------------------------------


def test_who_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert network.listener(port) == ""
        taken.listen()
        found = network._port(port, "of a test")
        assert found.grade is Grade.NOTE
        assert f"taken by pid {os.getpid()}: " in found.fact
    assert network._port(port, "of a test").grade is Grade.OK


def test_what_has_no_deadline_of_its_own_gets_one():
    with pytest.raises(TimedOut, match=r"a name took more than 0.05 s"):
        network.within(0.05, "a name", lambda: threading.Event().wait(1))


@pytest.mark.parametrize(
    ("host", "kind"),
    [("127.0.0.1", "loopback: this machine alone"), ("10.1.2.3", "private"), ("8.8.8.8", "public")],
)
def test_kinds_of_addresses(host, kind):
    assert network._kind(host) == kind


@pytest.mark.parametrize(("mode", "grade"), [(0o600, Grade.OK), (0o644, Grade.NOTE)])
def test_a_token_that_others_can_read(tmp_path, mode, grade):
    file = tmp_path / "token"
    file.write_text("secret\n")
    file.chmod(mode)
    (found,) = cluster.token(file)
    assert found.grade is grade and f"mode {mode:03o}" in found.fact


def test_a_token_that_is_not_there(tmp_path):
    (found,) = cluster.token(tmp_path / "token")
    assert found.grade is Grade.PROBLEM and found.error is Unauthorized


# --- the whole -----------------------------------------------------------------------------


def test_a_coordinator_is_host_and_port():
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        examine("somewhere", None, Path("runs"))


def test_it_is_readable_at_80_columns():
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, width=80, record=True)
        long = Finding("a", "thing", "word " * 40, Grade.PROBLEM, "do " * 40)
        show.draw([Finding("a", "other", "x"), long], console)
    lines = console.export_text().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == "2 checks: 1 problem, no notes"
    (at,) = {line.index(word) for line in lines for word in ("word", "-> do") if word in line}
    assert all(line.startswith(" " * at) for line in lines[3:-1])


@pytest.mark.parametrize("module", ["hubring.doctor", "hubring.doctor.cluster", "hubring.stacks"])
def test_torch_is_not_loaded_where_it_is_not_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
