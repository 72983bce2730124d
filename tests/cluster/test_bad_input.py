"""What a mistyped option, a wrong address or token, a missing server gets: words and a code."""

import json
import socket

import pytest
from cluster.command import TINY, finish, hubring, start, wait_for


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "token"
    file.write_text("the-right-one\n")
    return str(file)


@pytest.fixture
def coordinator(tmp_path, token):
    """The address of one that waits for a server."""
    port = free_port()
    process = start(tmp_path, "coordinator", "--bind", f"127.0.0.1:{port}", "--token-file", token)
    wait_for(lambda: listens(port), "the coordinator listens")
    yield f"127.0.0.1:{port}"
    process.terminate()
    finish(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", TINY, "--worker", "3"], "Did you mean --workers"),
        (["rum", TINY], "run"),
        (["run", TINY, "--workers", "0"], "--workers"),
        (["run", TINY, "--mode", "asink"], "async"),
        (["run", "missing.py"], "there is no script missing.py"),
        (["demo", "--example", "digit"], "There are digits"),
        (["status"], "no cluster runs below"),
        (["server", "--coordinator", "127.0.0.1:1"], "--token-file"),
        (["coordinator", "--bind", "0.0.0.0:0", "--token-file", "TOKEN"], "--plaintext"),
        (["coordinator", "--bind", "nowhere", "--token-file", "TOKEN"], "HOST:PORT"),
    ],
)
def test_bad_usage_is_told_with_what_to_do(tmp_path, token, arguments, words):
    done = hubring(tmp_path, *[token if word == "TOKEN" else word for word in arguments])
    assert done.returncode == 2
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_an_unknown_key_in_the_settings_file(tmp_path):
    (tmp_path / "hubring.toml").write_text("[run]\nworkrs = 3\n")
    done = hubring(tmp_path, "run", TINY)
    assert done.returncode == 2
    assert "workrs" in done.stderr + done.stdout


def test_settings_from_file_environment_and_flags(tmp_path, monkeypatch):
    (tmp_path / "hubring.toml").write_text("[run]\nworkers = 3\nservers = 1\njson = true\n")
    done = hubring(tmp_path, "run", TINY, "--workers", "1")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["workers"], summary["servers"]) == (1, 1)


@pytest.mark.parametrize("role", ["server", "worker"])
def test_nobody_at_the_address(tmp_path, token, role):
    script = [TINY] if role == "worker" else []
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--token-file", token]
    done = hubring(tmp_path, role, *script, *where, "--timeout", "0.5")
    assert done.returncode == 10
    assert "HUB-10" in done.stderr


@pytest.mark.parametrize("role", ["server", "worker", "status"])
def test_a_wrong_token(tmp_path, coordinator, role):
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-right-one\n")
    script = [TINY] if role == "worker" else []
    done = hubring(
        tmp_path, role, *script, "--coordinator", coordinator, "--token-file", str(wrong)
    )
    assert done.returncode == 22
    assert "HUB-22" in done.stderr and "token is wrong" in done.stderr


def test_a_port_in_use(tmp_path, token, coordinator):
    state = str(tmp_path / "other-state")
    done = hubring(
        tmp_path, "coordinator", "--bind", coordinator, "--token-file", token, "--state", state
    )
    assert done.returncode == 2
    assert f"cannot listen on {coordinator}" in done.stderr


def test_a_state_folder_in_use(tmp_path, token, coordinator):
    done = hubring(tmp_path, "coordinator", "--bind", "127.0.0.1:0", "--token-file", token)
    assert done.returncode == 2
    assert "hubring-state" in done.stderr


def test_a_server_that_never_comes(tmp_path, token):
    done = hubring(
        tmp_path,
        *("coordinator", "--bind", "127.0.0.1:0", "--token-file", token),
        *("--servers", "2", "--forming-timeout", "1"),
    )
    assert done.returncode == 10
    assert "2 of 2 servers" in done.stderr


def test_status_shows_the_cluster(tmp_path, token, coordinator):
    words = hubring(tmp_path, "status", "--coordinator", coordinator, "--token-file", token)
    assert words.returncode == 0, words.stderr
    assert "forming" in words.stdout and "1 of 1 servers" in words.stdout
    done = hubring(
        tmp_path, "status", "--coordinator", coordinator, "--token-file", token, "--json"
    )
    shown = json.loads(done.stdout)
    assert shown["state"] == "FORMING"
    assert shown.keys() >= {"run", "mode", "members", "shards", "epochs"}
