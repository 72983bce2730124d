"""Accelerate's loop with hubring's optimizer and loader: what works as with torch's own."""

import accelerate
import pytest
import torch
from frameworks.sums import BATCHES, both, data, net, one_worker
from torch import nn

from hubring_common.errors import ModelMismatch

pytestmark = pytest.mark.filterwarnings("ignore")  # Accelerate's own deprecations


def train(run, *, accumulate=1, precision="no", clip=None, prepares_schedule=False, epochs=3):
    model = net()
    loader = run.loader(data(), batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = run.optimizer(optimizer, model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.7)
    accelerator = accelerate.Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = accelerator.prepare(schedule) if prepares_schedule else schedule
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                if clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model)


@pytest.fixture(autouse=True)
def _fresh():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": 0.3},
        {"accumulate": 3},
        {"accumulate": 3, "clip": 0.3, "prepares_schedule": True},
        {"precision": "bf16"},
        {"prepares_schedule": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_one_worker_trains_as_accelerate_alone_does(tmp_path, options):
    def one(run):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        return train(run, **options)

    plain, ours = both(tmp_path, one)
    for ours_one, plain_one in zip(ours, plain, strict=True):
        torch.testing.assert_close(ours_one, plain_one, rtol=1e-6, atol=1e-7)


def test_what_an_epoch_leaves_over_is_carried_into_the_next(tmp_path):
    """Accelerate alone would step once more at each epoch's end."""
    with one_worker(tmp_path) as run:
        ours = train(run, accumulate=5)
        run.finish()
        model, batches = net(), 3 * [data()[at : at + 8] for at in range(0, 8 * BATCHES, 8)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.7)
        for number, (x, y) in enumerate(batches[: len(batches) // 5 * 5], 1):
            (nn.functional.mse_loss(model(x), y) / 5).backward()
            if number % 5 == 0:
                optimizer.step()
                optimizer.zero_grad()
            schedule.step()
        for mine, theirs in zip(ours.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_a_state_that_is_loaded_amid_a_run_is_refused_at_the_next_step(tmp_path):
    with one_worker(tmp_path) as run:
        model = net()
        loader = run.loader(data(), batch_size=8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        optimizer = run.optimizer(optimizer, model)
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        accelerator.save_state(tmp_path / "kept")
        x, y = next(iter(loader))
        for _ in range(2):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
        accelerator.load_state(tmp_path / "kept")
        accelerator.backward(nn.functional.mse_loss(model(x), y))
        with pytest.raises(ModelMismatch, match=r"changed by something else than optimizer.step"):
            optimizer.step()
