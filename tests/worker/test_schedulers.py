import pytest
from torch.optim import lr_scheduler, swa_utils
from worker.pair import Pair, adamw, loss, momentum

from hubring_common.optimizers import hypers_of

SCHEDULERS = {
    "Lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "Multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "Step": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStep": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "Constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "Linear": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "Exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "Polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4),
    "CosineAnnealing": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    "Cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "Plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "Sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "Chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "SWA": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("make", [momentum, adamw])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_give_the_same_numbers_and_weights(name, make):
    pair = Pair(make)
    seen = []
    for model, optimizer in pair:
        scheduler = SCHEDULERS[name](optimizer)
        for seed in range(6):
            optimizer.zero_grad()
            loss(model, seed).backward()
            optimizer.step()
            scheduler.step(*([1.0] if name == "Plateau" else []))
            seen.append(hypers_of(optimizer))
    pair.check()
    assert seen[:6] == seen[6:]
    assert len({h[0]["lr"] for h in seen}) > 1
    assert [s.hypers for s in pair.hub.steps[1:]] == seen[:5]
