"""The still tensors: what a model has and its optimizer does not step, so frozen parameters and
buffers. At the start every worker takes the chief's values of them; afterwards they are its own.

Here they are bytes, laid end to end row by row, and values again. Which shard keeps which bytes
is the layout's to say; how they travel, the hub's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hubring_common.carrier.base import Extent
from hubring_common.errors import ModelMismatch
from hubring_common.layout import StillSpec


class Still:
    """The still tensors of `model`, whose parameters `stepped` are not among them: parameters in
    the model's order, then buffers, each once, under its first name. For one thread.

    Raises ModelMismatch by name for a tensor whose values are not plain bytes.
    """

    def __init__(self, model: nn.Module, stepped: Sequence[nn.Parameter]) -> None:
        self._named = tuple(_found(model, frozenset(stepped)))
        self._flats: list[torch.Tensor] = []
        self.specs = tuple(_spec(name, tensor) for name, tensor in self._named)

    def extents(self, start: int, stop: int) -> list[Extent]:
        """The bytes [start, stop) of all, at their offset from `start`: to be sent, or written.

        Those of a dense tensor on the CPU are its own memory, those of any other a copy. Call
        `landed()` when all were written, `release()` when they are needed no more.
        """
        self._flats = self._flats or [_bytes_of(tensor) for _, tensor in self._named]
        return list(_cut(self._flats, start, stop))

    def landed(self) -> None:
        """All bytes were written: let the model, and autograd, see them.

        Raises ModelMismatch by name for a tensor that cannot hold what came: it has one element
        in several places, which the chief's has not.
        """
        for (name, tensor), flat in zip(self._named, self._flats, strict=True):
            if _is_own(tensor, flat):
                torch.autograd.graph.increment_version(tensor)
            else:
                _write(name, tensor, flat)
        self.release()

    def release(self) -> None:
        self._flats = []


def _found(
    model: nn.Module, stepped: frozenset[nn.Parameter]
) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, p) for name, p in model.named_parameters() if p not in stepped)
    yield from model.named_buffers()


def _spec(name: str, tensor: torch.Tensor) -> StillSpec:
    if why := _why_not(tensor):
        fact = f"{name}, which the optimizer does not step, {why}"
        todo = "Every worker takes the chief's values; keep it out of parameters and buffers"
        raise ModelMismatch(fact, todo=todo)
    nbytes = tensor.numel() * tensor.itemsize
    return StillSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), nbytes)


def _why_not(tensor: torch.Tensor) -> str:
    """Why the tensor's values cannot be copied as bytes, or ""."""
    reasons = {
        "has no shape yet: run one forward first": is_lazy(tensor),
        "has no values: it is on the meta device": tensor.is_meta,
        f"is a {type(tensor).__name__}": is_traceable_wrapper_subclass(tensor),
        f"is {tensor.layout}": tensor.layout != torch.strided,
        "is quantized": tensor.is_quantized,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Flat bytes, row by row: a view where the memory is that already, else a copy."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    return plain.contiguous().view(-1).view(torch.uint8)


def _is_own(tensor: torch.Tensor, flat: torch.Tensor) -> bool:
    return not flat.numel() or flat.data_ptr() == tensor.data_ptr()


def _cut(flats: Sequence[torch.Tensor], start: int, stop: int) -> Iterator[Extent]:
    at = 0
    for flat in flats:
        first, last = max(start - at, 0), min(stop - at, flat.numel())
        if first < last:
            part: Any = flat[first:last].numpy()
            yield Extent(at + first - start, memoryview(part))
        at += flat.numel()


def _write(name: str, tensor: torch.Tensor, flat: torch.Tensor) -> None:
    values = flat.view(tensor.dtype).view(tensor.shape)
    # torch writes to no expanded tensor; the first of the elements in one place stands for all.
    firsts = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor[firsts].copy_(values[firsts])
    if not torch.equal(_bytes_of(tensor), flat):
        fact = f"{name} is expanded here, or overlaps itself, and the chief's is not"
        raise ModelMismatch(fact, todo="Give it memory of its own on every worker: .contiguous()")
