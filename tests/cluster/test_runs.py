"""`hubring run` and its ends, with real processes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.command import (
    TINY,
    environment,
    finish,
    hubring,
    interrupt,
    processes_of,
    start,
    wait_for,
)

KEYS = {
    "run", "state", "example", "mode", "workers", "servers", "steps", "epochs", "samples", "mse",
    "examples_per_second", "seconds", "first_step_seconds", "staleness_mean", "staleness_max",
    "pushes", "duplicates", "model",
}  # fmt: skip


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path):
    """Whatever happens: no process, no shared memory, no temporary file is left."""
    before = {place: names(place) for place in ("/dev/shm", "/tmp")}
    yield
    wait_for(lambda: not processes_of(tmp_path), f"processes end: {processes_of(tmp_path)}", 10)
    assert names("/dev/shm") <= before["/dev/shm"]
    left = names("/tmp") - before["/tmp"]
    assert not {name for name in left if "hubring" in name or "torch" in name}


def test_a_run_in_one_json_object(tmp_path):
    done = hubring(tmp_path, "run", TINY, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary.keys() >= KEYS
    assert (summary["workers"], summary["servers"], summary["mode"]) == (2, 2, "async")
    assert summary["samples"] == 480 and summary["epochs"] == 2 and summary["steps"] == 60
    assert summary["pushes"] == 120 and summary["duplicates"] == 0
    assert summary["mse"] < 0.5 and summary["first_step_seconds"] < summary["seconds"]
    assert sorted(p.name for p in Path(summary["model"]).parent.iterdir()) == [
        "logs", "model.safetensors", "report.html", "summary.json",
    ]  # fmt: skip


def test_data_loader_processes_fork_quietly_beside_grpc(tmp_path):
    done = hubring(tmp_path, "run", TINY, "--json", "--", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 480
    for log in tmp_path.glob("runs/*/logs/worker-*.log"):
        assert "fork" not in log.read_text()


def test_words_for_a_person(tmp_path):
    done = hubring(tmp_path, "run", TINY, "--workers", "1", "--servers", "1")
    assert done.returncode == 0, done.stderr
    assert "finished; the model lies in" in done.stdout
    assert "worker-0  finished  60 steps, 480 samples" in done.stdout
    assert "server-0" in done.stdout and "60 steps" in done.stdout


@pytest.mark.parametrize("option", ["--raise-at", "--exit-at"])
def test_a_script_that_fails_fails_the_run(tmp_path, option):
    done = hubring(tmp_path, "run", TINY, "--", option, "2")
    assert done.returncode == 1
    if option == "--raise-at":
        assert "ValueError: bad luck in step 2" in done.stdout
        assert 'tiny.py", line' in done.stdout and "runpy" not in done.stdout
    else:
        assert "the script ended with exit status 3" in done.stdout


def test_a_script_that_fails_before_it_joins_is_heard_of_at_once(tmp_path):
    script = tmp_path / "early.py"
    script.write_text("import no_such_module\n")
    done = hubring(tmp_path, "run", str(script))
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stdout
    assert "early.py" in done.stdout


def test_an_option_that_the_script_refuses_is_shown_as_the_script_says_it(tmp_path):
    done = hubring(tmp_path, "run", TINY, "--", "--bogus")
    assert done.returncode == 1
    assert "unrecognized arguments: --bogus" in done.stdout


def test_a_worker_that_is_killed_is_started_again_and_no_batch_is_missing(tmp_path):
    mark = str(tmp_path / "killed")
    done = hubring(tmp_path, "run", TINY, "--timeout", "2", "--json", "--", "--kill-once", mark)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr and "starting it again" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["epochs"] == 2, "an epoch lacks batches"


def test_ctrl_c_drains(tmp_path):
    mark = tmp_path / "stepped"
    slow = ("--epochs", "500", "--pause", "0.02", "--mark", str(mark))
    process = start(tmp_path, "run", TINY, "--json", "--", *slow)
    wait_for(mark.exists, "the first step")
    interrupt(process)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["state"] == "stopped" and summary["steps"] > 0
    assert Path(summary["model"]).exists()


def test_ctrl_c_twice_ends_at_once(tmp_path):
    mark = tmp_path / "stepped"
    process = start(tmp_path, "run", TINY, "--", "--pause", "5", "--mark", str(mark))
    wait_for(mark.exists, "the first step")
    interrupt(process)
    assert any("draining" in line for line in process.stdout)
    interrupt(process)
    done = finish(process)
    assert done.returncode != 0
    assert "ending now" in done.stdout
    assert "starting it again" not in done.stdout


def test_a_launcher_that_is_killed_leaves_nothing(tmp_path):
    mark = tmp_path / "stepped"
    process = start(tmp_path, "run", TINY, "--", "--epochs", "500", "--mark", str(mark))
    wait_for(mark.exists, "the first step")
    assert len(processes_of(tmp_path)) >= 6
    process.kill()
    process.communicate()
    wait_for(lambda: not processes_of(tmp_path), "all children end", 10)


def plain(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, TINY, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_plain_script_gets_a_cluster_of_its_own(tmp_path):
    done = finish(plain(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "finished; the model lies in" in done.stderr
    assert len(list(tmp_path.glob("runs/*/model.safetensors"))) == 1


def test_a_plain_script_that_raises(tmp_path):
    done = finish(plain(tmp_path, "--raise-at", "1"))
    assert done.returncode == 1
    assert "ValueError: bad luck in step 1" in done.stderr
    assert "failed: ValueError" in done.stderr


def test_ctrl_c_drains_a_plain_script(tmp_path):
    mark = tmp_path / "stepped"
    process = plain(tmp_path, "--epochs", "500", "--pause", "0.02", "--mark", str(mark))
    wait_for(mark.exists, "the first step")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert "stopped" in done.stderr


def test_what_worker_0_prints_is_seen_at_once(tmp_path):
    script = Path(TINY).with_name("speaks.py")
    process = start(tmp_path, "run", str(script), "--workers", "2")
    assert any("worker-" in line and "speaks" in line for line in process.stdout)
    process.kill()
    process.communicate()
