import copy
import io
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.optim import SGD
from worker.local_hub import gradients, hubbed, weights
from worker.models import IDS, MODELS, channels_last, grads, loss, mlp, params, same, tied, twins

from hubring_common.layout import ModelSpec, ParamSpec, plan
from hubring_worker.flat import FlatModel


@pytest.mark.parametrize("make", MODELS, ids=IDS)
def test_wrapping_keeps_values_and_objects_and_training_is_as_plain(make):
    torch.manual_seed(0)
    model = make()
    plain, before = copy.deepcopy(model), params(model)
    optimizer, _ = hubbed(model, SGD(model.parameters(), lr=0.1, momentum=0.9))
    assert all(a is b for a, b in zip(before, params(model), strict=True))
    assert same(params(model), params(plain))
    oracle = SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for seed in range(3):
        for one, steps in ((model, optimizer), (plain, oracle)):
            steps.zero_grad()
            loss(one, seed).backward()
            steps.step()
    assert same(params(model), params(plain))
    assert same(grads(model), grads(plain))


@pytest.mark.parametrize("make", [channels_last, mlp, tied], ids=["channels_last", "mlp", "tied"])
def test_strides_are_kept(make):
    model, _, _, plain = twins(make)
    loss(model).backward()
    for param, before in zip(params(model), params(plain), strict=True):
        assert param.stride() == param.grad.stride() == before.stride()


def test_each_tensor_has_a_storage_and_a_version_of_its_own():
    model, _, _, _ = twins()
    loss(model).backward()
    tensors = params(model) + grads(model)
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)
    assert all(t._base is None for t in tensors)
    version = params(model)[1]._version
    with torch.no_grad():
        params(model)[0].zero_()
    assert params(model)[1]._version == version


SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=6), st.integers(1, 4))
def test_every_element_travels_both_ways(kinds, shards):
    model = nn.Module()
    for index, (shape, dtype) in enumerate(kinds):
        model.register_parameter(f"p{index}", nn.Parameter(torch.randn(shape).to(dtype)))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer, hub = hubbed(model, SGD(model.parameters(), lr=1.0), shards)
    assert same([w.to(b.dtype) for w, b in zip(weights(hub.flat), before, strict=True)], before)
    for param in model.parameters():
        param.grad = torch.randn(param.shape).to(param.grad_dtype)
    sent = gradients(hub.flat, hub.flat.present())
    assert same(sent, grads(model))
    optimizer.step()
    masters = [b.to(g.dtype) - g for b, g in zip(before, sent, strict=True)]
    assert same(weights(hub.flat), masters)
    assert same(params(model), [m.to(b.dtype) for m, b in zip(masters, before, strict=True)])


def test_only_slices_of_present_parameters_are_sent():
    torch.manual_seed(0)
    specs = tuple(ParamSpec(f"{i}", (1024,), (1,), "float32", 0) for i in range(4))
    model = nn.ParameterList(nn.Parameter(torch.randn(1024)) for _ in specs)
    layout = plan(ModelSpec(specs, "SGD"), 2, slice_bytes=4096)
    flat = FlatModel(layout, model, params(model))
    model[2].sum().backward()
    assert flat.present() == {2}
    pushed = [e for shard in range(2) for e in flat.grad_extents(shard, frozenset({2}))]
    assert [bytes(e.data) for e in pushed] == [torch.ones(1024).numpy().tobytes()]


def test_extents_are_the_mappings_themselves():
    model, flat, _, _ = twins()
    loss(model).backward()
    present = flat.present()
    grad_bytes, weight_bytes = flat.grad_extents(0, present), flat.weight_extents(0)
    with torch.no_grad():
        for param in params(model):
            param.grad.fill_(1)
            param.fill_(1)
    ones = torch.ones(1).numpy().tobytes()
    assert bytes(grad_bytes[0].data[:4]) == bytes(weight_bytes[0].data[:4]) == ones
    assert not weight_bytes[0].data.readonly


def test_a_forked_child_writes_to_its_own_copy():
    model, flat, _, plain = twins()
    child = os.fork()
    if child == 0:
        for extent in flat.weight_extents(0):
            extent.data[:] = bytes(extent.data.nbytes)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert same(params(model), params(plain))


def ten_layers():
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))


def test_torch_save_writes_each_layer_once_and_alone():
    model, _, _, plain = twins(ten_layers)
    whole, one, expected = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), whole)
    torch.save(plain.state_dict(), expected)
    torch.save(model[3].state_dict(), one)
    assert whole.tell() == expected.tell()
    assert 16_384 < one.tell() < 20_000
    whole.seek(0)
    loaded = torch.load(whole)
    assert len({t.untyped_storage().data_ptr() for t in loaded.values()}) == 10
    plain.load_state_dict(loaded)


def test_safetensors_takes_the_model_and_its_state_dict(tmp_path):
    model, _, _, plain = twins(ten_layers)
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    save_model(model, str(tmp_path / "model.safetensors"))
    for name in ("state", "model"):
        loaded = load_file(tmp_path / f"{name}.safetensors")
        assert same(loaded.values(), plain.state_dict().values())


@pytest.mark.parametrize(
    "clone",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    ],
    ids=["deepcopy", "pickle", "AveragedModel"],
)
def test_copies_are_independent_and_have_no_hooks(clone):
    model, flat, _, plain = twins()
    loss(model).backward()
    other = clone(model)
    assert same(params(other), params(plain))
    for param in params(other):
        assert not param._post_accumulate_grad_hooks
        param.grad = None
        with torch.no_grad():
            param.zero_()
    loss(other).backward()
    assert same(params(model), params(plain))
    loss(plain).backward()
    assert same(gradients(flat, flat.present()), grads(plain))


def test_a_pickle_is_as_small_as_the_model():
    model, _, _, plain = twins(ten_layers)
    assert len(pickle.dumps(model)) < 1.1 * len(pickle.dumps(plain))
