"""A one-worker cluster with nothing in flight computes what plain torch computes.

Bit for bit where torch itself agrees between its implementations; else within what torch's own
fused and single-tensor implementations differ by.
"""

import copy

import pytest
import torch
from torch import nn
from whole import cluster

STEPS = 50
EXACT = 0.0
FUSED = 2e-6  # torch's fused Adam, AdamW and Adagrad against its single-tensor ones, relative

CASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}, EXACT),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, EXACT),
    "nesterov": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
        EXACT,
    ),
    "adam": (torch.optim.Adam, {"lr": 1e-2}, FUSED),
    "amsgrad": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}, FUSED),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2}, FUSED),
    "adamax": (torch.optim.Adamax, {"lr": 1e-2}, EXACT),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2}, EXACT),
    "radam": (torch.optim.RAdam, {"lr": 1e-2}, EXACT),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9, "centered": True}, EXACT),
    "rprop": (torch.optim.Rprop, {"lr": 1e-3}, EXACT),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "initial_accumulator_value": 0.1}, FUSED),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}, EXACT),
    "asgd": (torch.optim.ASGD, {"lr": 1e-2}, EXACT),
}


class Net(nn.Module):
    """Odd shapes, a tied weight, a 0-dim parameter, and one that every third step leaves out."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(7, 13)
        self.tied = nn.Linear(13, 13, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.sometimes = nn.Linear(13, 3)
        self.last = nn.Linear(13, 3)

    def forward(self, x, step):
        h = torch.tanh(self.first(x)) * self.scale
        h = torch.tanh(self.tied(torch.tanh(self.tied(h))))
        return self.last(h) + (self.sometimes(h) if step % 3 else 0)


def grouped(model, cls, options):
    """Two param groups with rates of their own."""
    named = dict(model.named_parameters())
    biases = [p for n, p in named.items() if n.endswith("bias")]
    weights = [p for n, p in named.items() if not n.endswith("bias")]
    return cls([{"params": weights}, {"params": biases, "lr": options["lr"] / 2}], **options)


def train(model, optimizer, *, schedule=None, accumulate=1, clip=None, scaler=None):
    """50 steps on data that the seed alone decides. `scaler`: every seventh loss overflows."""
    generator = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=step % 2 == 0 or step % 3 < 2)
        for _ in range(accumulate):
            x = torch.randn(5, 7, generator=generator)
            y = torch.randint(3, (5,), generator=generator)
            loss = nn.functional.cross_entropy(model(x, step), y)
            if scaler is not None:
                scaler.scale(loss * (float("inf") if step % 7 == 6 else 1)).backward()
            else:
                loss.backward()
        if clip:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if schedule is not None:
            schedule.step()


def compare(tmp_path, case, *, servers=2, scheduler=None, scaler=False, **how):
    cls, options, bound = CASES[case]
    torch.manual_seed(1)
    plain = Net()
    model = copy.deepcopy(plain)
    make_scaler = lambda: torch.amp.GradScaler("cpu", init_scale=16.0) if scaler else None
    expected = grouped(plain, cls, options)
    train(plain, expected, schedule=scheduler and scheduler(expected), scaler=make_scaler(), **how)
    with cluster(tmp_path, servers=servers) as whole:
        run = whole.join()
        optimizer = run.optimizer(grouped(model, cls, options), model)
        schedule = scheduler and scheduler(optimizer)
        train(model, optimizer, schedule=schedule, scaler=make_scaler(), **how)
        run.finish()
        for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert_close(name, ours.detach(), theirs.detach(), bound)
        run.close()
        assert whole.end() == 0


def assert_close(name, ours, theirs, bound):
    if bound == EXACT:
        assert torch.equal(ours, theirs), f"{name}: {(ours - theirs).abs().max():.3g}"
    else:
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_class(tmp_path, case):
    compare(tmp_path, case)


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("case", ["momentum", "adamw", "rprop"])
def test_any_number_of_shards(tmp_path, case, servers):
    compare(tmp_path, case, servers=servers)


@pytest.mark.parametrize("case", ["nesterov", "nadam"])
def test_clipping_and_accumulation(tmp_path, case):
    compare(tmp_path, case, clip=0.3, accumulate=3)


@pytest.mark.parametrize("case", ["momentum", "radam"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_steps_that_a_grad_scaler_skips(tmp_path, case, clip):
    compare(tmp_path, case, scaler=True, clip=clip)


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.5),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS + 1),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 11),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.001, 0.05, step_size_up=7),
    "warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=10),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.95),
        ],
        milestones=[10],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(tmp_path, kind):
    compare(tmp_path, "momentum", scheduler=SCHEDULERS[kind])
