"""The run as a script holds it, over a whole cluster in this process."""

import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from whole import cluster

from hubring_common.errors import (
    Diverged,
    HubringError,
    ModelMismatch,
    RunEnded,
    SettingsMismatch,
    UsageError,
)

DATA = TensorDataset(torch.arange(40.0).reshape(20, 2), torch.arange(20.0).reshape(20, 1))


@pytest.fixture
def whole(tmp_path):
    with cluster(tmp_path) as running:
        yield running


def part(run, model=None, lr=1e-4, **options):
    """(model, loader, optimizer) of one worker."""
    model = model or nn.Linear(2, 1)
    loader = run.loader(DATA, **{"batch_size": 4, "shuffle": True, **options})
    return model, loader, run.optimizer(torch.optim.SGD(model.parameters(), lr=lr), model)


def train(model, loader, optimizer, epochs=1):
    seen = []
    for _ in range(epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            seen += inputs[:, 0].tolist()
    return seen


def side_by_side(*calls):
    """The results of calls that wait for one another; raises the first error."""
    results, errors = [None] * len(calls), []

    def keep(index, call):
        try:
            results[index] = call()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=keep, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]
    return results


def test_two_workers_train_each_sample_once_an_epoch_and_end_with_equal_weights(whole):
    def work():
        run = whole.join()
        model, loader, optimizer = part(run)
        seen = train(model, loader, optimizer, epochs=3)
        run.finish()
        run.close()
        return seen, [p.detach().clone() for p in model.parameters()]

    (first, ours), (second, theirs) = side_by_side(work, work)
    assert sorted(first + second) == sorted(3 * DATA.tensors[0][:, 0].tolist())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert whole.end() == 0


def test_another_model_is_refused_by_the_name_of_its_first_tensor(whole):
    first = whole.join()
    part(first)
    second = whole.join()
    with pytest.raises(ModelMismatch, match=r"weight is \[1, 3\] here but \[1, 2\].*worker-0"):
        part(second, nn.Linear(3, 1))


def test_another_optimizer_is_refused(whole):
    part(whole.join())
    second = whole.join()
    model = nn.Linear(2, 1)
    with pytest.raises(ModelMismatch, match=r"AdamW here but SGD"):
        second.optimizer(torch.optim.AdamW(model.parameters()), model)


def test_another_batch_size_is_refused_field_by_field(whole):
    part(whole.join())
    with pytest.raises(SettingsMismatch, match=r"batch_size is 5 here but 4.*worker-0"):
        part(whole.join(), batch_size=5)


def test_a_gradient_that_is_not_finite_changes_nothing(whole):
    run = whole.join()
    model, loader, optimizer = part(run)
    before = [p.detach().clone() for p in model.parameters()]
    batches = iter(loader)
    inputs, _ = next(batches)
    (model(inputs).sum() * float("nan")).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    optimizer.zero_grad()
    model(next(batches)[0]).sum().backward()
    optimizer.step()
    assert not torch.equal(before[0], model.weight)


def test_gradients_that_stay_not_finite_end_the_run_by_the_parameters_name(whole):
    run = whole.join()
    model, loader, optimizer = part(run, batch_size=2)

    def explode():
        for inputs, _ in loader:
            optimizer.zero_grad()
            model(inputs).sum().backward()
            model.bias.grad.fill_(float("inf"))
            optimizer.step()

    with pytest.raises(Diverged, match="bias had a NaN or Inf gradient in 5 steps in a row") as end:
        explode()
    run.close(end.value)
    assert whole.end() == 23


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_an_optimizer_that_the_hub_cannot_step_names_those_that_it_can(whole, cls):
    model = nn.Linear(2, 1)
    with pytest.raises(UsageError, match=f"{cls.__name__}.*AdamW.*SGD"):
        whole.join().optimizer(cls(model.parameters()), model)


def test_a_scheduler_that_was_built_before_is_refused_with_the_reason(whole):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(UsageError, match=r"Build the scheduler on what run\.optimizer returns"):
        whole.join().optimizer(optimizer, model)


def test_when_one_worker_fails_the_others_hear_of_it(whole):
    ready = threading.Barrier(2)

    def fails():
        run = whole.join()
        part(run)
        ready.wait(30)
        run.close(ValueError("bad luck"), "Traceback: bad luck")

    def works():
        run = whole.join()
        model, loader, optimizer = part(run)
        ready.wait(30)
        with pytest.raises(RunEnded, match="ValueError: bad luck"):
            train(model, loader, optimizer, epochs=10**6)
        run.close(RunEnded("over"))

    side_by_side(fails, works)
    assert whole.end() == 1


def test_accumulated_batches_without_a_step_are_used_up_at_the_end(whole):
    run = whole.join()
    model, loader, _ = part(run)
    for inputs, _ in loader:
        model(inputs).sum().backward()
    run.finish()
    run.close()
    assert whole.end() == 0


def test_a_second_loader_or_optimizer_is_refused(whole):
    run = whole.join()
    model, _, _ = part(run)
    with pytest.raises(UsageError, match="loader already"):
        run.loader(DATA, batch_size=2)
    with pytest.raises(UsageError, match="optimizer already"):
        run.optimizer(torch.optim.SGD(model.parameters(), lr=1), model)


def test_no_step_follows_the_finish(whole):
    run = whole.join()
    model, loader, optimizer = part(run)
    train(model, loader, optimizer)
    run.finish()
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(HubringError, match="finish"):
        optimizer.step()


def test_the_coordinator_is_on_no_steps_path(whole, monkeypatch):
    """A step returns although nothing that it has to tell the coordinator is heard."""
    run = whole.join()
    model, loader, optimizer = part(run, batch_size=2)
    heard = threading.Event()
    send = run._session._send_news
    monkeypatch.setattr(run._session._settler, "_send", lambda news: heard.wait(30) and send(news))
    batches = iter(loader)
    for _ in range(3):
        inputs, _ = next(batches)
        model(inputs).sum().backward()
        optimizer.step()
    assert not heard.is_set()
    heard.set()
    train(model, batches, optimizer)
    run.finish()
    run.close()
    assert whole.end() == 0


def test_a_script_can_ask_whether_the_run_drains(whole):
    run = whole.join()
    model, loader, optimizer = part(run)
    assert not run.draining
    whole.stops.ask("enough")
    deadline = time.monotonic() + 10
    while not run.draining:
        train(model, loader, optimizer)
        assert time.monotonic() < deadline, "the drain is not heard of"
    run.finish()
    run.close()
    assert whole.end() == 0


def test_a_joiner_has_the_others_weights_epoch_and_place_in_the_schedule(whole):
    first = whole.join()
    model, loader, optimizer = part(first)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(5):
        assert train(model, loader, optimizer)
        schedule.step()
    second = whole.join()
    joined, its_loader, its_optimizer = part(second)
    its_schedule = torch.optim.lr_scheduler.ExponentialLR(its_optimizer, 0.5)
    for _ in range(5):
        assert not train(joined, its_loader, its_optimizer), "these epochs are done"
        its_schedule.step()
    assert its_schedule.get_last_lr() == schedule.get_last_lr()
    assert all(map(torch.equal, joined.parameters(), model.parameters()))
    assert len(train(joined, its_loader, its_optimizer)) + len(
        train(model, loader, optimizer)
    ) == len(DATA)
    side_by_side(first.finish, second.finish)
    side_by_side(first.close, second.close)
    assert whole.end() == 0
