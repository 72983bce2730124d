import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim import SGD
from worker.local_hub import gradients, hubbed, weights, write
from worker.models import batch, grads, loss, mlp, params, same, twins, weight_normed

from hubring_common.errors import ModelMismatch


def version_zero(make=mlp):
    model, flat, optimizer, plain = twins(make)
    flat.check()
    flat.landed()
    return model, flat, optimizer, plain


def refusal(flat):
    with pytest.raises(ModelMismatch) as caught:
        flat.check()
    return str(caught.value)


def shifted(model):
    return {name: value + 1 for name, value in model.state_dict().items()}


def overwrite_in_place(model):
    model.load_state_dict(shifted(model))


def overwrite_by_init(model):
    for param in params(model):
        nn.init.normal_(param)


def overwrite_by_data(model):
    for param in params(model):
        param.data = param.data + 1


def overwrite_by_vector(model):
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector + 1, model.parameters())


OVERWRITES = [overwrite_in_place, overwrite_by_init, overwrite_by_data, overwrite_by_vector]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("overwrite", OVERWRITES)
def test_writes_before_version_0_are_the_seed(overwrite, dtype):
    model, flat, _, _ = twins(lambda: mlp().to(dtype))
    overwrite(model)
    expected = [p.detach().clone() for p in params(model)]
    flat.check()
    assert same(params(model), expected)
    assert same(weights(flat), [e.float() for e in expected])


@pytest.mark.parametrize("overwrite", OVERWRITES)
def test_writes_after_version_0_are_refused_by_name(overwrite):
    model, flat, _, _ = version_zero()
    overwrite(model)
    message = refusal(flat)
    assert "0.weight was changed by something else than optimizer.step()" in message
    assert "before run.optimizer is called" in message


@pytest.mark.parametrize("through_data", [False, True])
def test_a_single_write_is_named(through_data):
    model, flat, _, _ = version_zero()
    bias = model[2].bias
    if through_data:
        bias.data = bias.data + 1
    else:
        nn.init.ones_(bias)
    assert "2.bias was changed" in refusal(flat)


def test_a_landed_version_is_no_write_and_backward_across_it_raises():
    model, flat, _, plain = version_zero()
    pending = loss(model)
    write(flat, [p.detach() + 1 for p in params(plain)])
    flat.landed()
    flat.check()
    assert same(params(model), [p + 1 for p in params(plain)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pending.backward()


def test_an_open_autocast_block_sees_the_landed_version():
    model, flat, _, _ = version_zero()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(batch())
        write(flat, [torch.zeros(p.shape) for p in params(model)])
        flat.landed()
        after = model(batch())
    assert before.any()
    assert not after.any()


def convert_layout(model):
    model.to(memory_format=torch.channels_last)


def share(model):
    model.share_memory()


def rebind_equal(model):
    for param in params(model):
        param.data = param.data.clone()


@pytest.mark.parametrize("move", [convert_layout, share, rebind_equal])
def test_what_moved_with_its_values_is_taken_back(move):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    before = [p.detach().clone() for p in params(model)]
    _, hub = hubbed(model, SGD(model.parameters(), lr=0.1))
    hub.seed()
    addresses = [p.data_ptr() for p in params(model)]
    move(model)
    assert addresses != [p.data_ptr() for p in params(model)]
    hub.flat.check()
    assert addresses == [p.data_ptr() for p in params(model)]
    assert same(params(model), before)


@pytest.mark.parametrize(
    ("convert", "now"),
    [(nn.Module.half, "float16"), (nn.Module.double, "float64"), (nn.Module.bfloat16, "bfloat16")],
    ids=["half", "double", "bfloat16"],
)
def test_a_converted_model_is_refused_by_name(convert, now):
    model, flat, _, _ = twins()
    loss(model).backward()
    convert(model)
    expected = f"0.weight was torch.float32 when the optimizer was wrapped and is torch.{now} now"
    assert expected in refusal(flat)


def test_a_converted_model_is_refused_in_its_backward():
    model, _, _, _ = twins()
    model.double()
    with pytest.raises(ModelMismatch, match=r"4\.bias was torch\.float32"):
        loss(model).backward()


def test_a_reshaped_parameter_is_refused_by_name():
    model, flat, _, _ = twins()
    model[2].bias.data = torch.zeros(41)
    assert "2.bias was [40] on cpu when the optimizer was wrapped and is [41]" in refusal(flat)


def renorm(model):
    nn.utils.parametrizations.weight_norm(model[2])


def assign(model):
    model[2].load_state_dict(model[2].state_dict(), assign=True)


def replace(model):
    model[2] = nn.Linear(40, 40)


def delete(model):
    del model[2]


@pytest.mark.parametrize("change", [renorm, assign, replace, delete])
def test_a_replaced_parameter_is_refused_by_name(change):
    model, flat, _, _ = twins()
    change(model)
    assert "2.weight was replaced by another object" in refusal(flat)


def test_removing_a_parametrization_is_refused_by_name():
    model, flat, _, _ = twins(weight_normed)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert "0.parametrizations.weight.original0 was replaced" in refusal(flat)


def test_pruning_and_moving_within_the_model_are_no_replacement():
    model, flat, _, _ = version_zero()
    prune.l1_unstructured(model[0], "weight", 0.5)
    model[2] = nn.Sequential(model[2])
    flat.check()
    model[2] = nn.Linear(40, 40)
    assert "2.weight was replaced" in refusal(flat)


def test_freezing_for_a_while_changes_nothing():
    model, flat, _, plain = version_zero()
    for one in (model, plain):
        one[0].requires_grad_(requires_grad=False)
        loss(one).backward()
        one[0].requires_grad_()
        loss(one, 1).backward()
    flat.check()
    assert same(gradients(flat, flat.present()), grads(plain))


def test_a_compiled_model_keeps_its_views_and_sees_what_lands():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    plain = copy.deepcopy(model)
    optimizer, hub = hubbed(model, SGD(model.parameters(), lr=0.1))
    compiled = torch.compile(model, backend="aot_eager")
    oracle = SGD(plain.parameters(), lr=0.1)
    for seed in range(3):
        for one, steps in ((compiled, optimizer), (plain, oracle)):
            steps.zero_grad()
            one(batch(seed)).square().mean().backward()
            steps.step()
    assert same(gradients(hub.flat, hub.flat.present()), grads(plain))
    torch.testing.assert_close(params(model), params(plain))
