"""Which torch optimizers a shard can step, and which numbers of theirs travel with a push.

A shard holds ranges of parameters, so it can only step what torch computes element by element.
The stepping itself is in `spans`.
"""

import inspect
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import optim

from hubring_common.errors import UsageError
from hubring_common.messages import Hyper, Hypers

ELEMENTWISE: Mapping[str, type[optim.Optimizer]] = {
    cls.__name__: cls
    for cls in (
        optim.ASGD,
        optim.Adadelta,
        optim.Adagrad,
        optim.Adam,
        optim.AdamW,
        optim.Adamax,
        optim.NAdam,
        optim.RAdam,
        optim.RMSprop,
        optim.Rprop,
        optim.SGD,
    )
}
FUSED = frozenset({"Adagrad", "Adam", "AdamW", "SGD"})
"""The kinds that torch can step on a CPU in one pass over memory."""

WHY_NOT: Mapping[type[optim.Optimizer], str] = {
    optim.Adafactor: "keeps sums over rows and columns, so it needs whole matrices",
    optim.LBFGS: "calls its closure several times a step and looks at all weights at once",
    optim.Muon: "orthogonalizes whole matrices",
    optim.SparseAdam: "steps only the rows of sparse gradients, and pushes carry dense ones",
}

NEEDED_SLOTS: Mapping[str, Mapping[str, str]] = {
    "Adam": {"amsgrad": "max_exp_avg_sq"},
    "AdamW": {"amsgrad": "max_exp_avg_sq"},
    "RMSprop": {"momentum": "momentum_buffer", "centered": "grad_avg"},
}
"""Kind -> hyperparameter -> the slot that it needs, which torch makes at the first step only."""

# How torch computes, not what: each side of the wire decides these for itself.
_LOCAL = frozenset({"capturable", "differentiable", "foreach", "fused"})
# torch's Adagrad reads it when it is built and never again from a group.
_OF_THE_WHOLE = frozenset({"initial_accumulator_value"})


def kind_of(optimizer: optim.Optimizer) -> str:
    """The name of the optimizer's class, a key of ELEMENTWISE.

    Call it before the optimizer is wrapped. Raises UsageError where a shard cannot step it.
    """
    cls = type(optimizer)
    if ELEMENTWISE.get(cls.__name__) is cls:
        _refuse_differentiable(optimizer)
        return cls.__name__
    raise UsageError(f"{cls.__name__} {_why_not(cls)}", todo=f"Use one of {_names()}")


def hypers_of(optimizer: optim.Optimizer) -> tuple[Hypers, ...]:
    """Of each param group, every number that affects the mathematics; a tensor as its float.

    The optimizer may be wrapped. What schedulers leave in a group (initial_lr, max_momentum)
    stays here. Raises UsageError for a value that is no number, and for differentiable=True.
    """
    _refuse_differentiable(optimizer)
    names = [name for name in optimizer.defaults if name not in _LOCAL]
    return tuple(_hypers(optimizer, index, names) for index in range(len(optimizer.param_groups)))


def build(kind: str) -> optim.Optimizer:
    """A torch optimizer of `kind` with one param group, which is empty, and no state.

    Raises UsageError for a kind that is not in ELEMENTWISE.
    """
    if kind not in ELEMENTWISE:
        raise UsageError(f"no optimizer is named {kind}", todo=f"Use one of {_names()}")
    implementation = {"fused": True} if kind in FUSED else {"foreach": False}
    make: Any = _without_compiler(ELEMENTWISE[kind])
    optimizer: optim.Optimizer = make([torch.empty(0)], **implementation)
    optimizer.state.clear()
    optimizer.param_groups[0]["params"] = []
    return optimizer


def _without_compiler(cls: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """`cls` less the wrappers that tell torch.compile to keep out.

    Nothing is compiled on a shard, and the wrappers import all of torch._dynamo at their first
    call: a second of a server's start, and 60 MB.
    """
    step = torch.no_grad()(inspect.unwrap(cls.step))
    bare = {"step": step, "add_param_group": inspect.unwrap(cls.add_param_group)}
    return type(cls.__name__, (cls,), bare)


def check_hypers(optimizer: optim.Optimizer, hypers: Hypers) -> None:
    """Raises UsageError unless `hypers` has every number of the optimizer's class, and no other."""
    expected = {n: _width(v) for n, v in optimizer.defaults.items() if n not in _LOCAL}
    given = {name: _width(value) for name, value in hypers.items()}
    for name in expected.keys() | given.keys():
        ours, theirs = expected.get(name), given.get(name)
        if ours != theirs:
            fact = f"{type(optimizer).__name__} has {_shown(name, ours)} here but the worker sent "
            todo = "Use the same torch version on workers and servers"
            raise UsageError(fact + _shown(name, theirs), todo=todo)


def _refuse_differentiable(optimizer: optim.Optimizer) -> None:
    for index, group in enumerate(optimizer.param_groups):
        if group.get("differentiable"):
            fact = f"param group {index} of {type(optimizer).__name__} has differentiable=True"
            why = "and a step on the servers has no graph"
            raise UsageError(f"{fact}, {why}", todo="Build the optimizer without it")


def _why_not(cls: type) -> str:
    if cls in WHY_NOT:
        return WHY_NOT[cls]
    base = next((name for name, known in ELEMENTWISE.items() if issubclass(cls, known)), None)
    if base is not None:
        return f"is a class of its own over {base}, and its step may differ from torch's"
    return "is not one of torch's elementwise optimizers"


def _names() -> str:
    return ", ".join(ELEMENTWISE)


def _hypers(optimizer: optim.Optimizer, index: int, names: list[str]) -> Hypers:
    group = optimizer.param_groups[index]
    values = {n: optimizer.defaults[n] if n in _OF_THE_WHOLE else group[n] for n in names}
    hypers = {name: _number(value) for name, value in values.items()}
    plain = {name: value for name, value in hypers.items() if value is not None}
    for name in values.keys() - plain.keys():
        fact = f"param group {index} has {name}={values[name]!r}, which is no number"
        raise UsageError(fact, todo=f"Set it to a number that {type(optimizer).__name__} takes")
    return plain


def _number(value: Any) -> Hyper | None:
    """`value` as it travels, or None where it is neither a number nor several."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, tuple | list):
        numbers = [_scalar(v) for v in value]
        return None if None in numbers else tuple(n for n in numbers if n is not None)
    return _scalar(value)


def _scalar(value: Any) -> float | None:
    is_one = isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    return float(value) if is_one else None


def _width(value: Any) -> int:
    """How many numbers a tuple has; 0 for a number by itself."""
    return len(value) if isinstance(value, tuple) else 0


def _shown(name: str, width: int | None) -> str:
    if width is None:
        return f"no {name}"
    return f"{name} as {width} numbers" if width else f"{name} as one number"
