"""TensorBoard's event files, read back by TensorBoard's own reader."""

import subprocess
import sys

import pytest
from coordinator.statuses import eventful, status, worker

from hubring_common.errors import UsageError
from hubring_common.messages import EvaluationStatus
from hubring_coordinator.scalars import Scalars

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder):
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(e.step, pytest.approx(e.value)) for e in found.Scalars(tag)] for tag in tags}


def test_each_step_is_written_once_and_evaluations_at_their_step(tmp_path):
    scalars = Scalars(tmp_path)
    for steps, loss in ((0, 9.0), (10, 2.0), (10, 2.0), (20, float("nan")), (30, 1.0)):
        scalars.write(status(members=(worker(0, steps=steps, loss=loss),)))
    evaluation = EvaluationStatus(1, 4, 4, 50.0, 25, {"accuracy": 0.5})
    members = (worker(0, steps=40),)
    unfinished = EvaluationStatus(2, 4, 1)
    for _ in range(2):
        scalars.write(
            status(members=members, evaluations=(evaluation, unfinished), metrics={"lr": 0.1})
        )
    scalars.close()
    found = read(tmp_path)
    assert found["loss"] == [(10, 2.0), (30, 1.0), (40, 0.5)]
    assert [step for step, _ in found["examples_per_second"]] == [10, 20, 30, 40]
    assert found["evaluation/accuracy"] == [(25, 0.5)]
    assert found["logged/lr"] == [(40, 0.1)]


def test_a_restart_adds_to_the_folder(tmp_path):
    for steps in (10, 20):
        scalars = Scalars(tmp_path)
        scalars.write(status(members=(worker(0, steps=steps),)))
        scalars.close()
    assert {step for step, _ in read(tmp_path)["staleness"]} >= {20}


def test_everything_that_a_run_can_say_can_be_written(tmp_path):
    scalars = Scalars(tmp_path)
    scalars.write(eventful(word='<img src=x onerror="alert(1)">'))
    scalars.close()
    assert read(tmp_path)["loss"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write event files"):
        Scalars(tmp_path / "file")


def test_a_disk_that_fails_costs_the_scalars_and_not_the_run(tmp_path, monkeypatch, caplog):
    scalars = Scalars(tmp_path)

    def full(_event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scalars._writer, "add_event", full)
    for steps in (10, 20):
        scalars.write(status(members=(worker(0, steps=steps),)))
    scalars.close()
    assert [r.message for r in caplog.records if "No space left" in r.message] != []
    assert len(caplog.records) == 1
    scalars._writer.close()


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(UsageError, match="tensorboard cannot be loaded") as caught:
        Scalars(tmp_path)
    assert "hubring[tensorboard]" in caught.value.todo


def test_the_writer_brings_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from hubring_coordinator.scalars import Scalars\n"
        f"Scalars(Path({str(tmp_path)!r})).close()\n"
        "sys.exit('torch' in sys.modules or 'tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
