"""A model trained twice: in spans, dealt to shards, and by plain torch."""

from itertools import cycle, groupby

import torch

from hubring_common.layout import ALIGN, MASTER, ModelSpec, ParamSpec, plan
from hubring_common.optimizers import ELEMENTWISE
from hubring_common.spans import SpanOptimizer

CONFIGURATIONS = {
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "SGD nesterov decay": (
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "SGD dampening maximize": (
        "SGD",
        {"lr": 0.01, "momentum": 0.8, "dampening": 0.3, "maximize": True},
    ),
    "Adam": ("Adam", {"lr": 0.01}),
    "Adam amsgrad decay": ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    "AdamW": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "AdamW amsgrad maximize": ("AdamW", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    "Adagrad": (
        "Adagrad",
        {"lr": 0.05, "lr_decay": 0.01, "initial_accumulator_value": 0.1, "weight_decay": 0.01},
    ),
    "Adamax": ("Adamax", {"lr": 0.01, "weight_decay": 0.01}),
    "NAdam": ("NAdam", {"lr": 0.01}),
    "NAdam decoupled": (
        "NAdam",
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.01},
    ),
    "RAdam": ("RAdam", {"lr": 0.01, "weight_decay": 0.01}),
    "RMSprop": ("RMSprop", {"lr": 0.01}),
    "RMSprop centered momentum": ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    "Rprop": ("Rprop", {"lr": 0.01, "step_sizes": (1e-5, 1)}),
    "Adadelta": ("Adadelta", {"lr": 1.0, "weight_decay": 0.01}),
    "ASGD": ("ASGD", {"lr": 0.05, "t0": 10, "lambd": 0.01}),
}
STEPS = 50
SHAPES = (((7, 5), (3,), (), (33, 17), (1000,)), ((5,), (130, 9), (16,)))
"""Of two param groups."""


def spec_of(shapes, kind, dtypes=("float32",)):
    named = [(group, shape) for group, members in enumerate(shapes) for shape in members]
    params = (
        ParamSpec(f"p{i}", shape, torch.empty(shape).stride(), dtype, group)
        for i, ((group, shape), dtype) in enumerate(zip(named, cycle(dtypes), strict=False))
    )
    return ModelSpec(tuple(params), kind)


class Shards:
    """A model's weights dealt to shards, each with its optimizer: what the servers hold."""

    def __init__(self, spec, params, shards, slice_bytes=1024):
        self.layout = plan(spec, shards, slice_bytes)
        self.weights = self.scatter(params)
        self.optimizers = [
            SpanOptimizer(spec.optimizer, self.layout.blocks(shard), weights)
            for shard, weights in enumerate(self.weights)
        ]

    def scatter(self, tensors):
        """Tensors like the parameters -> for each shard, the flat tensors of its blocks."""
        flat = [self._flat(segment, tensors) for segment in self.layout.segments]
        return [
            [torch.cat([flat[segment][s.start : s.stop] for s in run]) for segment, run in runs]
            for runs in map(self._runs, range(self.layout.shards))
        ]

    def gather(self):
        """The parameters, put together again, each 1-D."""
        flat = [torch.empty(s.elements, dtype=dtype_of(s)) for s in self.layout.segments]
        for shard, blocks in enumerate(self.weights):
            for (segment, run), block in zip(self._runs(shard), blocks, strict=True):
                pieces = block.split([s.stop - s.start for s in run])
                for where, piece in zip(run, pieces, strict=True):
                    flat[segment][where.start : where.stop] = piece
        found = {
            slot.param: whole[slot.start : slot.stop]
            for whole, segment in zip(flat, self.layout.segments, strict=True)
            for slot in segment.slots
        }
        return [found[i][: param.numel] for i, param in enumerate(self.layout.spec.params)]

    def step(self, grads, groups):
        present = frozenset(i for i, grad in enumerate(grads) if grad is not None)
        for optimizer, flat in zip(self.optimizers, self.scatter(grads), strict=True):
            optimizer.step(flat, present, groups)

    def snapshot(self):
        return [optimizer.snapshot() for optimizer in self.optimizers]

    def _runs(self, shard):
        runs = groupby(self.layout.of_shard(shard), key=lambda s: s.segment)
        return [(segment, tuple(run)) for segment, run in runs]

    def _flat(self, segment, tensors):
        """One segment. An absent gradient's slot is filled with NaN: it must not be looked at."""
        flat = torch.zeros(segment.elements, dtype=dtype_of(segment))
        for slot in segment.slots:
            tensor = tensors[slot.param]
            if tensor is None:
                flat[slot.start : slot.stop] = float("nan")
            else:
                flat[slot.start : slot.start + tensor.numel()] = tensor.reshape(-1)
        return flat


class Plain:
    """The same training by plain torch, a parameter at a time."""

    def __init__(self, shapes, kind, options, params):
        self.params = [param.clone() for param in params]
        members = iter(self.params)
        groups = [{"params": [next(members) for _ in group]} for group in shapes]
        groups[-1]["lr"] = options["lr"] / 2
        self.optimizer = ELEMENTWISE[kind](groups, **options)

    def step(self, grads):
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        self.optimizer.step()

    def schedule(self, step):
        """What OneCycle does: lr and momentum move at every step."""
        for group in self.optimizer.param_groups:
            group["lr"] *= 1.03 if step < STEPS / 3 else 0.97
            if "betas" in group:
                group["betas"] = (0.95 - 0.1 * step / STEPS, group["betas"][1])
            if group.get("momentum"):
                group["momentum"] = 0.95 - 0.1 * step / STEPS


def dtype_of(segment):
    return getattr(torch, segment.master)


def random_tensors(spec, generator):
    return [
        torch.randn(p.shape, generator=generator, dtype=getattr(torch, MASTER[p.dtype]))
        for p in spec.params
    ]


def padded_flat(tensors):
    """Each tensor 1-D, filled up with zeros to whole vectors of 16 elements, as in a block."""
    return [
        None if t is None else torch.nn.functional.pad(t.reshape(-1), (0, -t.numel() % ALIGN))
        for t in tensors
    ]


def without(grads, absent):
    return [None if i in absent else grad for i, grad in enumerate(grads)]


def both(name, shards, *, dtypes=("float32",), fused=False):
    """The same model in spans and in plain torch, and a source of gradients."""
    kind, options = CONFIGURATIONS[name]
    generator = torch.Generator().manual_seed(7)
    spec = spec_of(SHAPES, kind, dtypes)
    params = random_tensors(spec, generator)
    how = {"fused": True} if fused else {"foreach": False}
    plain = Plain(SHAPES, kind, options | how, padded_flat(params) if fused else params)
    return Shards(spec, params, shards), plain, lambda: random_tensors(spec, generator)


def difference(shards, plain):
    """The largest |ours - torch's| of all elements, relative to the weight where it is above 1.

    NaN where there is one.
    """
    ours = shards.gather()
    pairs = zip(ours, plain.params, strict=True)
    want = torch.cat([theirs.reshape(-1)[: mine.numel()].double() for mine, theirs in pairs])
    apart = (torch.cat([mine.double() for mine in ours]) - want).abs() / want.abs().clamp_min(1)
    return apart.max().item() if apart.numel() else 0
