"""Evaluation, stop rules and leaving alone, on a whole cluster over gRPC."""

import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from whole import cluster

from hubring_common.errors import SettingsMismatch, UsageError
from hubring_worker.buffers import Buffers

DATA = TensorDataset(torch.arange(40.0).reshape(20, 2), torch.ones(20, 1))


@pytest.fixture
def whole(tmp_path):
    with cluster(tmp_path, timeout=2.0, workers=2) as running:
        yield running


def part(run, model=None, batch_size=2):
    torch.manual_seed(1)
    model = model or nn.Linear(2, 1)
    loader = run.loader(DATA, batch_size=batch_size)
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1e-4), model)
    return model, loader, optimizer


def epoch(model, loader, optimizer):
    count = 0
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        count += 1
    return count


def measured(model):
    def measure(batch):
        inputs, targets = batch
        loss = nn.functional.mse_loss(model(inputs), targets, reduction="sum")
        return {"loss": (loss, len(inputs)), "seen": (inputs[:, 0].sum(), 1)}

    return measure


def side_by_side(*calls):
    results, threads = {}, []
    for number, call in enumerate(calls):
        threads.append(
            threading.Thread(target=lambda n=number, c=call: results.update({n: c()}), daemon=True)
        )
        threads[-1].start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return [results[number] for number in range(len(calls))]


def test_every_worker_gets_the_metrics_of_one_version_over_all_the_data(whole):
    def work():
        run = whole.join()
        model, loader, optimizer = part(run)
        found = []
        for _ in range(3):
            epoch(model, loader, optimizer)
            model.train()
            found.append(run.evaluate(measured(model), DATA, batch_size=3))
            assert model.training
            weights = [p.detach().clone() for p in model.parameters()]
        run.finish()
        run.close()
        return found, weights

    (ours, weights), (theirs, _) = side_by_side(work, work)
    assert ours == theirs
    assert len(ours) == 3
    model = nn.Linear(2, 1)
    with torch.no_grad():
        for param, value in zip(model.parameters(), weights, strict=True):
            param.copy_(value)
        expected = nn.functional.mse_loss(model(DATA.tensors[0]), DATA.tensors[1])
    assert ours[-1]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert ours[-1]["seen"] == DATA.tensors[0][:, 0].sum() / 7
    assert whole.end() == 0


def test_one_worker_may_go_while_the_other_evaluates(whole):
    def first():
        run = whole.join()
        model, loader, optimizer = part(run)
        epoch(model, loader, optimizer)
        result = run.evaluate(measured(model), DATA)
        run.close()
        return result

    def second():
        run = whole.join()
        model, loader, optimizer = part(run)
        epoch(model, loader, optimizer)
        run.close()

    result, _ = side_by_side(first, second)
    assert result["seen"] == DATA.tensors[0][:, 0].sum()
    assert whole.end() == 0


def test_evaluation_leaves_the_generators_as_they_were(whole):
    run = whole.join()
    part(run)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    run.evaluate(lambda batch: {"x": (torch.rand(1).item(), 1)}, DATA)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("dataset", "fn", "words"),
    [
        (DataLoader(DATA), lambda batch: {}, "given a DataLoader"),
        (iter([1]), lambda batch: {}, "lacks __len__"),
        ([], lambda batch: {}, "is empty"),
        (DATA, lambda batch: 3, "returned 3"),
        (DATA, lambda batch: {"loss": 3}, "returned"),
        (DATA, lambda batch: {"loss": ("a", 1)}, "returned"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(whole, dataset, fn, words):
    run = whole.join()
    part(run)
    with pytest.raises(UsageError, match=words):
        run.evaluate(fn, dataset)


def test_there_must_be_weights(whole):
    with pytest.raises(UsageError, match="no weights"):
        whole.join().evaluate(lambda batch: {}, DATA)


def test_a_run_ends_itself_after_the_wanted_epochs_exactly(whole):
    def work():
        run = whole.join()
        model, loader, optimizer = part(run)
        run.stop_when(epochs=3)
        steps = 0
        while not run.draining:
            steps += epoch(model, loader, optimizer)
        run.close()
        return steps

    assert sum(side_by_side(work, work)) == 30
    assert whole.end() == 0


def test_a_run_ends_itself_by_an_evaluated_metric(whole):
    run = whole.join()
    model, loader, optimizer = part(run)
    run.stop_when("seen", at_least=1.0)
    run.stop_when(steps=10_000)
    deadline = time.monotonic() + 20
    while not run.draining:
        epoch(model, loader, optimizer)
        run.evaluate(measured(model), DATA, batch_size=20)
        assert time.monotonic() < deadline
    run.close()
    assert whole.end() == 0


def test_other_stop_rules_are_refused(whole):
    one, two = whole.join(), whole.join()
    one.stop_when(epochs=3)
    with pytest.raises(SettingsMismatch, match="epochs 4 here but epochs 3"):
        two.stop_when(epochs=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "no condition"),
        ({"metric": "loss"}, "names no condition"),
        ({"at_least": 3}, "none is named"),
        ({"steps": 0}, "not positive"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(whole, arguments, words):
    with pytest.raises(UsageError, match=words):
        whole.join().stop_when(**arguments)


def test_who_leaves_alone_waits_for_nobody_and_loses_nothing(whole):
    gone = threading.Event()

    def leaver():
        run = whole.join()
        model, loader, optimizer = part(run)
        seen = []
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            seen += inputs[:, 0].tolist()
            run.drain("SIGTERM")
        run.finish()
        run.close()
        gone.set()
        return seen

    def stayer():
        run = whole.join()
        model, loader, optimizer = part(run)
        assert gone.wait(20), "the leaver waited for the others"
        seen = [x for inputs, _ in loader for x in inputs[:, 0].tolist() if step(model, optimizer)]
        run.close()
        return seen

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return True

    ours, theirs = side_by_side(leaver, stayer)
    assert sorted(ours + theirs) == sorted(DATA.tensors[0][:, 0].tolist())
    assert len(ours) == 2
    assert whole.end() == 0


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.out = nn.Linear(2, 1)

    def forward(self, inputs):
        return self.out(self.norm(inputs))


def test_pooled_statistics_are_those_of_all_the_data():
    halves = torch.randn(2, 50, 3, dtype=torch.float64) * 3 + torch.tensor([0.0, 5, -9])[None, None]
    halves[1] += 4
    models = [nn.BatchNorm1d(3, momentum=1.0).double() for _ in halves]
    vectors = []
    for model, half in zip(models, halves, strict=True):
        model(half)
        with torch.no_grad():
            model.running_var *= 49 / 50  # torch keeps the unbiased one
        vectors.append(torch.frombuffer(bytearray(Buffers(model).packed()), dtype=torch.float64))
    Buffers(models[0]).land((sum(vectors) / 2).numpy().tobytes())
    whole = halves.reshape(-1, 3)
    torch.testing.assert_close(models[0].running_mean, whole.mean(0))
    torch.testing.assert_close(models[0].running_var, whole.var(0, unbiased=False))


def test_a_model_without_statistics_has_nothing_to_pool():
    assert Buffers(nn.Linear(2, 2)).packed() == b""


def test_the_workers_statistics_are_pooled_for_an_evaluation_and_at_the_end(whole):
    both_are_here = threading.Barrier(2)

    def work():
        run = whole.join()
        model = Normalized()
        _, loader, optimizer = part(run, model)
        both_are_here.wait(20)
        epoch(model, loader, optimizer)
        run.evaluate(measured(model), DATA)
        evaluated = model.norm.running_mean.clone(), model.norm.running_var.clone()
        epoch(model, loader, optimizer)
        run.finish()
        final = model.norm.running_mean.clone(), model.norm.running_var.clone()
        run.close()
        return *evaluated, *final

    ours, theirs = side_by_side(work, work)
    assert all(map(torch.equal, ours, theirs))
    assert whole.end() == 0
