import copy
import io
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adagrad, Adam
from worker.local_hub import hubbed
from worker.pair import Pair, adamw, loss, momentum, net, same, train

from hubring_common.errors import ModelMismatch
from hubring_common.optimizers import ELEMENTWISE, hypers_of

# --- as plain torch ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_every_class_trains_as_plain(kind):
    pair = Pair(lambda params: ELEMENTWISE[kind](params, lr=0.01))
    for model, optimizer in pair:
        train(model, optimizer)
    pair.check()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_both_ways_to_zero_gradients(set_to_none):
    pair = Pair(adamw)
    for model, optimizer in pair:
        train(model, optimizer, set_to_none=set_to_none)
    pair.check()


def test_accumulation_and_clipping():
    pair = Pair(adamw)
    for model, optimizer in pair:
        for seed in range(6):
            loss(model, seed).backward()
            if seed % 2:
                clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                optimizer.zero_grad()
    pair.check()
    assert len(pair.hub.steps) == 3


def test_an_unused_parameter_is_skipped_as_in_torch():
    pair = Pair()
    for model, optimizer in pair:
        train(model, optimizer, 2)
        optimizer.zero_grad()
        model[4](model[0](torch.ones(1, 4))).sum().backward()
        optimizer.step()
        train(model, optimizer, 2)
    pair.check()
    assert [sorted(s.present) for s in pair.hub.steps[1:3]] == [[0, 1, 2, 3, 4, 5], [0, 1, 4, 5]]


def test_a_step_without_any_gradient_changes_nothing():
    pair = Pair()
    for _, optimizer in pair:
        optimizer.step()
    pair.check()
    assert pair.hub.steps[0].present == frozenset()


def test_param_groups_keep_their_own_numbers():
    def groups(params):
        first, *rest = params
        return SGD([{"params": [first], "lr": 0.5, "weight_decay": 0.1}, {"params": rest}], lr=0.1)

    pair = Pair(groups)
    for model, optimizer in pair:
        train(model, optimizer)
        optimizer.param_groups[1]["lr"] = 0.01
        train(model, optimizer)
    pair.check()
    assert [h["lr"] for h in pair.hub.steps[-1].hypers] == [0.5, 0.01]


def test_a_closure_is_called_once_with_gradients_enabled():
    pair = Pair()
    losses = []
    for model, optimizer in pair:

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            return value

        with torch.no_grad():
            losses.append(optimizer.step(closure))
    pair.check()
    assert losses[0] == losses[1]
    assert losses[0] is not None


def test_step_hooks_run_once_those_from_before_the_wrap_too():
    torch.manual_seed(0)
    model = net()
    optimizer = momentum(model.parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: calls.append(("before", o)))
    wrapped, hub = hubbed(model, optimizer)
    wrapped.register_step_post_hook(lambda o, args, kwargs: calls.append(("after", o)))
    loss(model).backward()
    wrapped.step()
    assert calls == [("before", wrapped), ("after", wrapped)]
    assert len(hub.steps) == 1


@pytest.mark.parametrize("make", [momentum, adamw])
def test_it_is_an_optimizer_of_its_class(make):
    pair = Pair(make)
    assert isinstance(pair.optimizer, type(pair.oracle))
    assert type(pair.optimizer).__name__ == type(pair.oracle).__name__
    assert repr(pair.optimizer) == repr(pair.oracle)
    assert pair.optimizer.defaults == pair.oracle.defaults


def test_two_optimizers_of_one_loss_as_in_a_gan():
    torch.manual_seed(0)
    models = [(nn.Linear(4, 4), nn.Linear(4, 1))]
    models.append(copy.deepcopy(models[0]))
    made = [tuple(SGD(m.parameters(), lr=0.1) for m in pair) for pair in models]
    hubs = [hubbed(m, o)[0] for m, o in zip(models[0], made[0], strict=True)]
    for (generator, critic), (g_opt, c_opt) in zip(models, [hubs, made[1]], strict=True):
        for seed in range(3):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
            g_opt.zero_grad()
            critic(generator(x)).mean().backward()
            g_opt.step()
            c_opt.zero_grad()
            critic(generator(x).detach()).square().mean().backward()
            c_opt.step()
    assert same(models[0][0], models[1][0])
    assert same(models[0][1], models[1][1])


# --- mixed precision -----------------------------------------------------------------------

LOSSES = [1.0, float("inf"), 1.0, 1.0]


@pytest.mark.parametrize("make", [momentum, adamw])
@pytest.mark.parametrize("clipping", [False, True])
def test_a_grad_scalers_overflow_abstains_and_the_rest_is_as_plain(make, clipping):
    pair = Pair(make)
    scales = []
    for model, optimizer in pair:
        scaler = torch.amp.GradScaler("cpu", init_scale=1000.0, growth_interval=2)
        for seed, factor in enumerate(LOSSES):
            optimizer.zero_grad()
            scaler.scale(loss(model, seed) * factor).backward()
            if clipping:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
    pair.check()
    assert scales[:4] == scales[4:]
    assert [bool(s.present) for s in pair.hub.steps] == [True, False, True, True]


def test_an_abstaining_step_still_takes_new_weights():
    pair = Pair()
    train(pair.model, pair.optimizer, 1)
    pair.hub.masters[5] = torch.ones(2)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss(pair.model) * float("inf")).backward()
    scaler.step(pair.optimizer)
    assert torch.equal(pair.model[4].bias, torch.ones(2))


def test_a_grad_scaler_without_any_gradient():
    pair = Pair()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    scaler.step(pair.optimizer)
    assert pair.hub.steps[0].present == frozenset()


# --- state and copies ----------------------------------------------------------------------


def test_a_round_trip_of_the_state_dict_resets_nothing():
    pair = Pair(adamw)
    for model, optimizer in pair:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer)
    pair.check()
    assert len(pair.hub.steps) == 6


def test_the_state_dict_is_small_and_names_the_hub():
    pair = Pair(adamw)
    train(pair.model, pair.optimizer)
    file = io.BytesIO()
    torch.save(pair.optimizer.state_dict(), file)
    assert file.tell() < 4096
    state = pair.optimizer.state_dict()
    assert (state["state"], state["hubring"]) == ({}, {"steps": 3})
    fresh = adamw(pair.plain.parameters())
    fresh.load_state_dict(state)
    assert hypers_of(fresh) == hypers_of(pair.optimizer)


def test_a_loaded_state_is_left_out_with_one_log_line(caplog):
    pair = Pair(adamw)
    train(pair.plain, pair.oracle)
    pair.oracle.param_groups[0]["lr"] = 0.5
    with caplog.at_level(logging.INFO, "hubring_worker"):
        pair.optimizer.load_state_dict(pair.oracle.state_dict())
    assert len(caplog.records) == 1
    assert pair.optimizer.param_groups[0]["lr"] == 0.5
    assert not pair.optimizer.state


@pytest.mark.parametrize(
    ("make", "trained", "lines"), [(adamw, 1, 1), (adamw, 0, 0), (Adagrad, 0, 0)]
)
def test_a_state_from_before_the_wrap_is_one_log_line(make, trained, lines, caplog):
    model = net()
    optimizer = make(model.parameters())
    train(model, optimizer, trained)
    with caplog.at_level(logging.INFO, "hubring_worker"):
        wrapped, _ = hubbed(model, optimizer)
    assert len(caplog.records) == lines
    assert not wrapped.state


def test_param_groups_are_shared_with_the_optimizer_that_was_wrapped():
    model = net()
    optimizer = momentum(model.parameters())
    wrapped, _ = hubbed(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.7
    assert wrapped.param_groups[0]["lr"] == 0.7


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize(
    "make", [momentum, adamw, lambda p: Adagrad(p, lr=0.1, initial_accumulator_value=0.5)]
)
def test_a_copy_is_a_plain_optimizer_of_the_copied_model(make, clone):
    pair = Pair(make)
    model, optimizer = clone((pair.model, pair.optimizer))
    assert type(optimizer) is type(pair.oracle)
    train(model, optimizer)
    train(pair.plain, pair.oracle)
    assert same(model, pair.plain)
    assert optimizer.defaults == pair.oracle.defaults
    assert pair.hub.steps == []


# --- refused -------------------------------------------------------------------------------


def test_a_param_group_added_after_the_wrap_is_refused():
    pair = Pair()
    with pytest.raises(ModelMismatch, match="added after the optimizer was wrapped"):
        pair.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_other_parameters_in_the_groups_are_refused_at_the_step():
    pair = Pair()
    pair.optimizer.param_groups[0]["params"].pop()
    loss(pair.model).backward()
    with pytest.raises(ModelMismatch, match="hold other parameters"):
        pair.optimizer.step()


def halve(model):
    model.half()


def renorm(model):
    nn.utils.parametrizations.weight_norm(model[0])


def overwrite(model):
    model.load_state_dict(net().state_dict())


def step_elsewhere(model):
    Adam(model.parameters()).step(lambda: loss(model).backward())


@pytest.mark.parametrize("change", [halve, renorm, overwrite, step_elsewhere])
def test_a_changed_model_is_refused_at_the_step_and_nothing_is_sent(change):
    pair = Pair()
    train(pair.model, pair.optimizer, 1)
    change(pair.model)
    with pytest.raises(ModelMismatch, match=r"0\.weight"):
        pair.optimizer.step()
    assert len(pair.hub.steps) == 1


def test_weights_loaded_before_version_0_are_where_training_begins():
    pair = Pair()
    other = net().state_dict()
    for model, optimizer in pair:
        model.load_state_dict(other)
        train(model, optimizer)
    pair.check()
