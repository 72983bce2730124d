"""Every example through the command: one JSON object, a model that plain torch loads; and alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.command import environment, finish, hubring
from examples import char_gpt, char_rnn, digits, linear_regression
from safetensors.torch import load_model

from hubring import catalogue

FOLDER = Path(digits.__file__).parent
KEYS = {
    "run", "example", "mode", "workers", "servers", "steps", "epochs", "samples",
    "examples_per_second", "seconds", "first_step_seconds", "staleness_mean", "staleness_max",
    "pushes", "duplicates", "model",
}  # fmt: skip


def one_object(done) -> dict:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert summary.keys() >= KEYS
    assert summary["state"] == "finished" and summary["mode"] == "async"
    assert summary["duplicates"] == 0
    assert 0 < summary["first_step_seconds"] < summary["seconds"]
    return summary


def test_digits(tmp_path):
    options = ("--model", "mlp", "--epochs", "3")
    summary = one_object(hubring(tmp_path, "demo", "--json", "--", *options))
    assert summary["example"] == "digits"
    assert (summary["workers"], summary["servers"]) == (2, 2)
    assert (summary["epochs"], summary["samples"], summary["steps"]) == (3, 3 * 1437, 3 * 45)
    model, (_, test) = digits.mlp(), digits.data()
    load_model(model, summary["model"])
    assert digits.accuracy(model, test) == pytest.approx(summary["test_accuracy"])
    assert summary["test_accuracy"] > 0.5


def test_linear_regression(tmp_path):
    script = str(FOLDER / "linear_regression.py")
    options = ("--workers", "1", "--servers", "1", "--json", "--", "--iterations", "30")
    summary = one_object(hubring(tmp_path, "run", script, *options))
    assert summary["example"] == "linear_regression"
    assert (summary["workers"], summary["servers"]) == (1, 1)
    assert (summary["epochs"], summary["samples"], summary["steps"]) == (30, 30 * 353, 30)
    model, (train, test) = linear_regression.linear(10), linear_regression.data()
    load_model(model, summary["model"])
    cost = linear_regression.cost(model, *train.tensors).item()
    assert cost == pytest.approx(summary["cost"], rel=1e-9)
    assert linear_regression.r2(model, *test.tensors) == pytest.approx(summary["test_r2"])


def test_char_rnn(tmp_path):
    options = ("--minutes", "0.03", "--hidden", "16", "--cell", "lstm")
    summary = one_object(
        hubring(tmp_path, "demo", "--example", "char_rnn", "--json", "--", *options)
    )
    assert summary["example"] == "char_rnn"
    _, test, characters = char_rnn.data()
    model = char_rnn.CharRNN(len(characters), "lstm", 16)
    load_model(model, summary["model"])
    found = char_rnn.perplexity(model, test)
    assert found == pytest.approx(summary["test_perplexity"], rel=1e-4)
    assert found < len(characters)


def test_char_gpt(tmp_path):
    options = ("--minutes", "0.03", "--width", "32", "--window", "32")
    summary = one_object(
        hubring(tmp_path, "demo", "--example", "char_gpt", "--json", "--", *options)
    )
    assert summary["example"] == "char_gpt"
    _, test, characters = char_rnn.data()
    model = char_gpt.CharGPT(len(characters), window=32, width=32, blocks=2)
    load_model(model, summary["model"])
    found = char_gpt.perplexity(model, test)
    assert found == pytest.approx(summary["test_perplexity"], rel=1e-4)
    assert found < len(characters)


def test_an_example_runs_alone(tmp_path):
    script = str(FOLDER / "linear_regression.py")
    alone = subprocess.Popen(
        [sys.executable, script, "--iterations", "30"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    done = finish(alone)
    assert done.returncode == 0, done.stderr
    assert "cost 1" in done.stderr and "test r2 0." in done.stderr
    assert len(list(tmp_path.glob("runs/*/model.safetensors"))) == 1


@pytest.mark.parametrize("example", catalogue.NAMES)
def test_an_example_is_short(example):
    assert len((FOLDER / f"{example}.py").read_text().splitlines()) <= 130
