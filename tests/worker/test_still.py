"""Still tensors: frozen parameters and buffers of every worker are the chief's, bit for bit."""

import copy
import threading
import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from whole import cluster
from worker.test_run import side_by_side

from hubring_common.carrier.grpc import GrpcCarrier
from hubring_common.errors import LeaseLost, ModelMismatch
from hubring_common.messages import PullHeader, SeedHeader
from hubring_worker.link import ShardLink
from hubring_worker.still import Still

# --- the tensors as bytes ---------------------------------------------------------------------

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int64,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.uint16,
)
SHAPES = ((), (0, 3), (1,), (2, 3), (5, 1, 2))


def random_of(shape, dtype):
    """Random bytes as a tensor, NaNs and all; a bool is 0 or 1."""
    size = torch.empty(shape, dtype=dtype)
    data = torch.randint(256, (size.numel() * size.itemsize,), dtype=torch.uint8)
    data = data % 2 if dtype is torch.bool else data
    return data.view(dtype).view(shape)


class Odd(nn.Module):
    """Of every dtype and shape; other strides; ties; with one parameter to train."""

    def __init__(self):
        super().__init__()
        self.trained = nn.Linear(3, 2)
        for index, (dtype, shape) in enumerate((d, s) for d in DTYPES for s in SHAPES):
            self.register_buffer(f"b{index}", random_of(shape, dtype), persistent=index % 2 == 0)
        self.columns = nn.Parameter(torch.randn(4, 6)[:, ::2], requires_grad=False)
        self.transposed = nn.Parameter(torch.randn(3, 5).t(), requires_grad=False)
        self.images = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
        self.register_buffer("expanded", torch.randn(1, 3).expand(4, 3))
        self.register_buffer("conjugate", torch.randn(3, dtype=torch.complex64).conj())
        self.register_buffer("absent", None)
        self.one = nn.Linear(3, 3, bias=False).requires_grad_(False)
        self.other = nn.Linear(3, 3, bias=False)
        self.other.weight = self.one.weight
        with torch.inference_mode():
            self.inferred = nn.Parameter(torch.randn(2, 3), requires_grad=False)
            self.register_buffer("inferred_columns", torch.randn(4, 6)[:, ::2])

    def forward(self, x):
        return self.trained(self.one(x))

    @property
    def stepped(self):
        return list(self.trained.parameters())


def still_of(model, stepped):
    """{name: bytes} of what the optimizer does not step."""
    held = set(stepped)
    named = {n: p for n, p in model.named_parameters() if p not in held}
    return {n: data_of(t) for n, t in (*named.items(), *model.named_buffers())}


def data_of(tensor):
    return tensor.detach().clone().resolve_conj().contiguous().view(-1).view(torch.uint8).tolist()


def carried(source, target, cuts):
    """Send the bytes of one in parts, each written in the other's room."""
    for start, stop in pairwise(cuts):
        sent, room = source.extents(start, stop), target.extents(start, stop)
        data = bytearray(stop - start)
        for offset, part in sent:
            data[offset : offset + part.nbytes] = part
        for offset, part in room:
            part[:] = data[offset : offset + part.nbytes]
    target.landed()


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_every_dtype_stride_and_tie_takes_the_other_models_bytes(shards):
    one, other = Odd(), Odd()
    source, target = Still(one, one.stepped), Still(other, other.stepped)
    assert source.specs == target.specs
    names = [spec.name for spec in source.specs]
    assert names[:4] == ["columns", "transposed", "images", "inferred"]
    assert len(names) == len(set(names)) == len(still_of(one, one.stepped))
    size = sum(spec.nbytes for spec in source.specs)
    trained = [p.detach().clone() for p in other.stepped]
    before = still_of(other, other.stepped)
    carried(source, target, [size * i // shards for i in range(shards + 1)])
    assert still_of(other, other.stepped) == still_of(one, one.stepped) != before
    assert all(torch.equal(a, b) for a, b in zip(trained, other.stepped, strict=True))
    assert other.one.weight is other.other.weight


def test_dense_tensors_are_sent_and_filled_where_they_lie():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    still = Still(model, [])
    (first, *_) = still.extents(0, sum(spec.nbytes for spec in still.specs))
    first.data[:] = bytes(first.data.nbytes)
    assert (model[0].weight == 0).all()


def test_a_graph_over_a_value_that_was_replaced_is_refused_by_autograd():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].requires_grad_(False)
    loss = model(torch.ones(1, 3)).sum()
    still = Still(model, list(model[0].parameters()))
    carried(still, still, [0, sum(spec.nbytes for spec in still.specs)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_expanded_tensor_cannot_hold_what_differs_along_it():
    one, other = nn.Module(), nn.Module()
    one.register_buffer("mask", torch.randn(4, 3))
    other.register_buffer("mask", torch.randn(1, 3).expand(4, 3))
    with pytest.raises(ModelMismatch, match=r"mask is expanded here.*\.contiguous\(\)"):
        carried(Still(one, []), Still(other, []), [0, 48])


REFUSED = {
    "has no shape yet": nn.parameter.UninitializedBuffer,
    "on the meta device": lambda: torch.empty(2, device="meta"),
    "is torch.sparse_coo": lambda: torch.eye(2).to_sparse(),
    "is a TwoTensor": lambda: TwoTensor(torch.ones(2), torch.ones(2)),
    "is quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_plain_bytes_is_refused_by_name(words):
    model = nn.Module()
    model.register_buffer("strange", REFUSED[words]())
    with pytest.raises(
        ModelMismatch, match=f"strange, which the optimizer does not step, .*{words}"
    ):
        Still(model, [])


# --- over a whole cluster ----------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path):
    with cluster(tmp_path) as running:
        yield running


@pytest.fixture
def calls(monkeypatch):
    """The headers of all seeds and pulls of this process, in order."""
    made = []
    for name in ("seed", "pull"):
        real = getattr(GrpcCarrier, name)

        def noting(carrier, header, *args, real=real):
            made.append(header)
            return real(carrier, header, *args)

        monkeypatch.setattr(GrpcCarrier, name, noting)
    return made


def wrapped(run, model):
    return run.optimizer(torch.optim.SGD(model.stepped, lr=0.1), model)


@pytest.mark.parametrize("servers", [1, 3])
def test_all_workers_take_the_chiefs_values_and_so_does_one_that_joins_later(tmp_path, servers):
    models = [Odd() for _ in range(3)]
    choices = [still_of(model, model.stepped) for model in models[:2]]
    assert choices[0] != choices[1]
    with cluster(tmp_path, servers=servers) as whole:
        pairs = [(whole.join(), model) for model in models[:2]]
        first, _ = side_by_side(*(partial(wrapped, *pair) for pair in pairs))
        models[0](torch.ones(1, 3)).sum().backward()
        first.step()
        wrapped(whole.join(), models[2])
    assert still_of(models[0], models[0].stepped) in choices
    for model in models[1:]:
        assert still_of(model, model.stepped) == still_of(models[0], models[0].stepped)


def test_they_travel_once_and_not_with_a_step(whole, calls):
    models = [Odd() for _ in range(2)]
    optimizers = [wrapped(whole.join(), model) for model in models]
    assert [type(h) for h in calls if h.still] == [SeedHeader] * 2 + [PullHeader] * 2
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    assert len([h for h in calls if h.still]) == 4


def test_a_worker_that_begins_with_the_same_bytes_writes_none(whole, tmp_path):
    """A checkpoint may be mapped from a file that cannot be written to: a write would be fatal."""
    np.arange(1000.0).tofile(tmp_path / "table")
    for _ in range(2):
        table = np.memmap(tmp_path / "table", np.float64, "r")
        model = nn.Linear(2, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of just that
            model.register_buffer("table", torch.from_numpy(table))
        whole.join().optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)
        assert torch.equal(model.table, torch.arange(1000.0, dtype=torch.float64))


def test_a_model_without_any_makes_no_call_for_them(whole, calls):
    for _ in range(2):
        model = nn.Linear(2, 1)
        whole.join().optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert not [header for header in calls if header.still]
    assert {type(header) for header in calls} == {SeedHeader, PullHeader}


def test_few_bytes_lie_on_some_shards_alone(tmp_path, calls):
    with cluster(tmp_path, servers=3) as whole:
        for value in (True, False):
            model = nn.Linear(2, 1)
            model.register_buffer("flag", torch.tensor(value))
            whole.join().optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)
        assert model.flag
        assert [(type(h), h.shard) for h in calls if h.still] == [(SeedHeader, 2), (PullHeader, 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.register_buffer("b5", torch.zeros(7)), r"b5 is \[7\] here but \[\] on the c"),
        (lambda m: m.register_buffer("b5", torch.tensor(1)), "b5's dtype is int64 here but uint8"),
        (
            lambda m: m.register_buffer("more", torch.zeros(1)),
            "more is only here .*or buffers here",
        ),
        (lambda m: delattr(m, "columns"), "buffer is transposed here but columns on the cluster"),
    ],
)
def test_a_worker_with_other_ones_is_refused_by_the_name_of_the_first(whole, change, words):
    wrapped(whole.join(), Odd())
    model = Odd()
    change(model)
    with pytest.raises(ModelMismatch, match=f"{words}.*worker-0"):
        wrapped(whole.join(), model)


def test_the_next_chief_brings_its_own_where_the_first_died_between_them_and_the_weights(
    whole, monkeypatch
):
    real, models = ShardLink.seed, [Odd(), Odd(), Odd()]
    runs = [whole.join() for _ in range(2)]

    def dies(link):
        if link._session == runs[0]._welcome.session:
            raise LeaseLost("it died here")
        return real(link)

    def first():
        with pytest.raises(LeaseLost, match="it died here") as death:
            wrapped(runs[0], models[0])
        runs[0].close(death.value)

    monkeypatch.setattr(ShardLink, "seed", dies)
    expected = still_of(models[1], models[1].stepped)
    first_alone = threading.Thread(target=first)
    first_alone.start()
    first_alone.join(30)
    wrapped(runs[1], models[1])
    assert still_of(models[1], models[1].stepped) == expected
    wrapped(whole.join(), models[2])
    assert still_of(models[2], models[2].stepped) == expected


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter, behind frozen normalization."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40)).requires_grad_(False)
        self.down = nn.Linear(40, 2, bias=False)
        self.up = nn.Linear(2, 40, bias=False)
        self.head = nn.Linear(40, 1).requires_grad_(False)

    def forward(self, x):
        hidden = self.frozen(x)
        return self.head(hidden + self.up(self.down(hidden)))

    @property
    def stepped(self):
        return [*self.down.parameters(), *self.up.parameters()]


def steps(model, optimizer, first=0):
    for step in range(first, first + 20):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()


def test_an_adapter_on_a_frozen_model_trains_as_in_one_process(whole):
    """The first worker steps, then one that joined with a frozen model of its own, in turn."""
    models = [Adapted().eval(), Adapted().eval()]
    plain = copy.deepcopy(models[0])
    expected = torch.optim.SGD(plain.stepped, lr=0.05, momentum=0.9)
    for turn, model in enumerate(models):
        made = torch.optim.SGD(model.stepped, lr=0.05, momentum=0.9)
        optimizer = whole.join().optimizer(made, model)
        steps(model, optimizer, first=20 * turn)
        steps(plain, expected, first=20 * turn)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(models[0].up.weight, models[1].up.weight), "the second went on"
