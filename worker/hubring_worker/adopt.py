"""From a user's model and optimizer to the run's ModelSpec, or a refusal by name.

Nothing of the model or the optimizer is changed here; `flat` and `optimizer` do that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hubring_common.errors import ModelMismatch, UsageError
from hubring_common.layout import MASTER, ModelSpec, ParamSpec
from hubring_common.optimizers import kind_of
from hubring_worker.optimizer import HubStep


@dataclass(frozen=True, slots=True)
class Adopted:
    """`params[i]` is what `spec.params[i]` describes."""

    params: tuple[nn.Parameter, ...]
    spec: ModelSpec


def adopt(model: nn.Module, optimizer: torch.optim.Optimizer) -> Adopted:
    """The parameters that `optimizer` steps, in the order of its groups, named as in `model`.

    A parameter under several names is one, under its first. What the model has and the
    optimizer lacks is the matter of `still`. Raises ModelMismatch for a parameter that cannot be
    held, and UsageError for an optimizer that cannot be wrapped.
    """
    _check_optimizer(optimizer)
    kind = kind_of(optimizer)
    names = {p: name for name, p in model.named_parameters()}
    held = tuple(_held(optimizer, names))
    for param, _ in held:
        _check_parameter(names[param], param)
    _check_overlaps(names)
    specs = (_param_spec(names[param], param, group) for param, group in held)
    return Adopted(tuple(param for param, _ in held), ModelSpec(tuple(specs), kind))


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, HubStep):
        raise UsageError("the optimizer is wrapped already", todo="Wrap an optimizer once")
    if "step" in optimizer.__dict__:
        # A scheduler replaces the instance's step; it would go on stepping the old object's lr.
        raise UsageError(
            f"a scheduler was built on this {type(optimizer).__name__} before it was wrapped",
            todo="Build the scheduler on what run.optimizer returns",
        )


def _held(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> Iterator[tuple[nn.Parameter, int]]:
    """The optimizer's parameters and their groups."""
    seen: set[nn.Parameter] = set()
    for group, settings in enumerate(optimizer.param_groups):
        for index, param in enumerate(settings["params"]):
            if param not in names:
                shown = "a lazy tensor" if is_lazy(param) else f"a tensor of {list(param.shape)}"
                fact = f"the optimizer's parameter {index} of group {group}, {shown}, is not in"
                raise ModelMismatch(
                    f"{fact} the model", todo="Build the optimizer on this model's parameters()"
                )
            if param in seen:
                fact = f"the optimizer holds {names[param]} twice in group {group}"
                raise ModelMismatch(fact, todo="Give each parameter to the optimizer once")
            seen.add(param)
            yield param, group


def _check_parameter(name: str, param: nn.Parameter) -> None:
    if is_lazy(param):
        raise ModelMismatch(f"{name} has no shape yet", todo="Run one forward first")
    if param.layout != torch.strided:
        raise ModelMismatch(f"{name} is {param.layout}", todo="Use dense parameters")
    if param.device.type != "cpu":
        todo = "Only models on the CPU can be trained for now; keep the model there"
        raise ModelMismatch(f"{name} lies on {param.device}", todo=todo)
    if _dtype_name(param) not in MASTER:
        known = ", ".join(MASTER)
        raise ModelMismatch(f"{name} is {_dtype_name(param)}", todo=f"Use one of {known}")


def _check_overlaps(names: Mapping[nn.Parameter, str]) -> None:
    """Distinct parameters over the same memory (tied by `.data`) would come apart silently."""
    below: list[nn.Parameter] = []  # those that reach beyond the start of the next
    for param in sorted(filter(_has_memory, names), key=torch.Tensor.data_ptr):
        below = [p for p in below if _end(p) > param.data_ptr()]
        for other in below:
            if _share(other, param):
                todo = "Tie them by assigning the same Parameter object, not its .data"
                fact = f"{names[param]} and {names[other]} are two parameters over the same memory"
                raise ModelMismatch(fact, todo=todo)
        below.append(param)


def _has_memory(param: nn.Parameter) -> bool:
    return (
        not is_lazy(param)
        and param.layout == torch.strided
        and param.device.type == "cpu"
        and param.numel() > 0
    )


def _extent(tensor: torch.Tensor) -> int:
    """Elements from the first to the last in memory, both included."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def _end(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() + _extent(tensor) * tensor.itemsize


def _share(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether an element belongs to both: columns of one matrix only lie between each other."""
    return bool(torch.isin(_addresses(one), _addresses(other)).any())


def _addresses(tensor: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(_extent(tensor)).as_strided(tensor.shape, tensor.stride())
    return tensor.data_ptr() + offsets.reshape(-1) * tensor.itemsize


def _param_spec(name: str, param: nn.Parameter, group: int) -> ParamSpec:
    return ParamSpec(name, tuple(param.shape), _dense_stride(param), _dtype_name(param), group)


def _dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's own strides where its elements lie without gaps, else contiguous ones."""
    by_stride: Sequence[tuple[int, int]] = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    expected = 1
    for stride, size in by_stride:
        if size != 1 and stride != expected:
            return tuple(torch.empty(tensor.shape, device="meta").stride())
        expected *= size
    return tensor.stride()


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
