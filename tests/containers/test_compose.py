"""The Compose file from `up` to exit codes, on a real engine."""

import json
import os
import subprocess

import pytest
import torch
from containers.compose import Compose
from examples import digits
from safetensors.torch import load_model

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]


@pytest.fixture
def compose(request):
    project = Compose(f"hubring-test-{os.getpid()}", **getattr(request, "param", {}))
    project.down()
    yield project
    project.down()


def test_up_trains_the_digits_and_every_container_exits_0(compose, tmp_path):
    up = compose("up")
    codes = compose.exit_codes()
    assert len(codes) == 5
    assert set(codes.values()) == {0}, up.stdout
    run = compose.results(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["state"] == "FINISHED"
    assert summary["metrics"]["test_accuracy"] >= 0.97
    assert "test accuracy 0.9" in up.stdout + up.stderr, "the outcome is told in the log"
    model = digits.cnn()
    load_model(model, run / "model.safetensors")
    _, test = digits.data()
    assert digits.accuracy(model, test) == pytest.approx(summary["metrics"]["test_accuracy"])


def test_more_workers_by_scale(compose, tmp_path):
    compose("up", "--scale", "worker=4")
    codes = compose.exit_codes()
    assert len(codes) == 7
    assert set(codes.values()) == {0}
    summary = json.loads((compose.results(tmp_path) / "summary.json").read_text())
    workers = [m for m in summary["members"] if m["role"] == "WORKER"]
    assert len(workers) == 4
    assert all(worker["worker"]["steps"] > 0 for worker in workers)


@pytest.mark.parametrize(
    "compose", [{"EXAMPLE": "linear_regression", "SERVERS": "1"}], indirect=True
)
def test_another_example_and_one_server(compose, tmp_path):
    compose("up")
    codes = compose.exit_codes()
    assert len(codes) == 4
    assert set(codes.values()) == {0}
    assert (compose.results(tmp_path) / "model.safetensors").is_file()


@pytest.mark.parametrize("compose", [{"EXAMPLE": "/scripts/train.py"}], indirect=True)
@pytest.mark.parametrize(
    "script",
    ["import no_such_module", "import hubring\nhubring.init()\nraise ValueError('bad luck')"],
)
def test_a_script_that_raises_makes_the_documented_command_fail(compose, tmp_path, script):
    (tmp_path / "train.py").write_text(script + "\n")
    tmp_path.chmod(0o755)
    override = tmp_path / "override.yml"
    mount = {"volumes": [f"{tmp_path}:/scripts:ro"]}
    override.write_text(json.dumps({"services": {"worker": mount}}))
    compose.add_file(override)
    up = compose("up", "--exit-code-from", "coordinator", check=False)
    assert up.returncode == 1, up.stdout
    error = "ModuleNotFoundError" if "import no" in script else "ValueError: bad luck"
    assert error in up.stdout + up.stderr


def test_the_containers_have_no_rights(compose):
    compose("up", "-d")
    names = compose("ps", "-aq").stdout.split()
    assert len(names) == 5
    shown = json.loads(subprocess.check_output(["docker", "inspect", *names]))
    for container in shown:
        host = container["HostConfig"]
        assert container["Config"]["User"] == "hub"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Memory"] > 0


def test_status_from_inside(compose):
    compose("up", "-d", "coordinator")
    done = compose(
        *("exec", "-T", "coordinator", "python", "-m", "hubring", "status", "--json"),
        *("--coordinator", "127.0.0.1:7077", "--token-file", "/run/hubring/token"),
    )
    assert json.loads(done.stdout)["state"] == "FORMING"
    compose("stop", "coordinator")
    assert set(compose.exit_codes().values()) == {0}


def test_torch_is_the_pinned_one():
    shown = subprocess.check_output(
        ["docker", "run", "--rm", "--entrypoint", "python", "hubring-worker", "-c",
         "import torch; print(torch.__version__)"],
        text=True,
    )  # fmt: skip
    assert shown.split("+")[0].strip() == torch.__version__.split("+")[0]
