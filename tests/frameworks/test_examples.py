"""The frameworks' examples on real clusters of two workers."""

import json
from pathlib import Path

import digits
import digits_lightning
import pytest
from cluster.command import hubring
from safetensors.torch import load_model

SCRIPTS = Path(__file__).parent / "scripts"
EXAMPLES = Path(digits.__file__).parent
TRAIN = 1437


def summary_of(done) -> dict:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_accelerate(tmp_path):
    options = ("--example", "digits_accelerate", "--json", "--", "--epochs", "3")
    summary = summary_of(hubring(tmp_path, "demo", *options))
    assert (summary["workers"], summary["epochs"], summary["steps"]) == (2, 3, 3 * 45)
    assert (summary["samples"], summary["duplicates"]) == (3 * TRAIN, 0)
    model, (_, test) = digits.cnn(), digits.data()
    load_model(model, summary["model"])
    assert digits.accuracy(model, test) == pytest.approx(summary["test_accuracy"])
    assert summary["test_accuracy"] > 0.8


def test_lightning(tmp_path):
    options = ("--example", "digits_lightning", "--json", "--", "--epochs", "3")
    summary = summary_of(hubring(tmp_path, "demo", *options))
    assert (summary["workers"], summary["steps"]) == (2, 3 * 2 * (45 // 2))
    module, (_, test) = digits_lightning.Digits(None, 0.0), digits.data()
    load_model(module, summary["model"])
    assert digits.accuracy(module, test) == pytest.approx(summary["test_accuracy"])
    assert summary["test_accuracy"] > 0.8


def test_every_worker_validates_after_each_of_its_epochs(tmp_path):
    script = tmp_path / "validating.py"
    script.write_text((SCRIPTS / "validating.py").read_text())
    for name in ("digits", "digits_lightning"):
        (tmp_path / f"{name}.py").write_text((EXAMPLES / f"{name}.py").read_text())
    summary = summary_of(hubring(tmp_path, "run", str(script), "--json", "--", "4"))
    assert summary["steps"] == 4 * 2 * (45 // 2)
    for worker in ("worker-0", "worker-1"):
        counts = json.loads((tmp_path / f"{worker}.json").read_text())
        assert counts == {"validations": 4, "steps": 4 * (45 // 2)}


def test_a_library_that_is_not_there_is_said(tmp_path, monkeypatch):
    from hubring import catalogue
    from hubring_common.errors import UsageError

    monkeypatch.setitem(catalogue.NEEDS, "digits_lightning", "no_such_library")
    with pytest.raises(UsageError, match="needs no_such_library, which is not installed"):
        catalogue.find("digits_lightning")
