"""Keeping gradients in their slots: what happens as autograd accumulates one.

The hook leaves `p.grad` as the slot's view, so that clipping, a GradScaler and the user see
the gradient that is sent, and the next backward accumulates in place. Which parameters have a
gradient is asked at step(): a slot keeps its old bytes when a step doesn't use it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from hubring_common.errors import ModelMismatch
from hubring_common.layout import ParamSpec
from hubring_worker.slots import torch_dtype

Place = Callable[[], torch.Tensor]
"""Makes a tensor of a parameter's shape and strides over its slot in some memory."""


class GradSlot:
    """One parameter's place among the gradients. It doesn't hold the parameter itself."""

    def __init__(self, spec: ParamSpec, place: Place) -> None:
        self._name, self._dtype, self._place = spec.name, torch_dtype(spec.dtype), place
        self.view = place()
        self._address = self.view.data_ptr()

    def holds(self, grad: torch.Tensor) -> bool:
        # model.double() converts our view in place, so being the same object says too little.
        return grad is self.view and grad.data_ptr() == self._address

    def take(self, grad: torch.Tensor) -> None:
        """Copy a gradient that lies elsewhere into the slot."""
        if grad is self.view:
            self.view = self._place()
        # detach() rather than no_grad(), which takes longer than a small copy.
        self.view.copy_((grad.to_dense() if grad.is_sparse else grad).detach())

    def hook(self, param: torch.Tensor) -> None:
        """For register_post_accumulate_grad_hook."""
        grad = param.grad
        if grad is None or grad.is_sparse or self.holds(grad):
            # None: an earlier hook dropped it. Sparse: it goes on accumulating as it is, and
            # step() reads it.
            return
        if param.dtype is not self._dtype:
            raise converted(self._name, self._dtype, param.dtype)
        self.take(grad)
        if not grad.requires_grad:
            # With create_graph the user's own tensor stays: he may differentiate it.
            param.grad = self.view


class Grads:
    """All slots. A parameter without requires_grad is hooked when it has been given that."""

    def __init__(
        self, specs: Sequence[ParamSpec], params: Sequence[nn.Parameter], places: Sequence[Place]
    ) -> None:
        self._params = params
        self._slots = tuple(map(GradSlot, specs, places))
        for param, slot in zip(params, self._slots, strict=True):
            _accumulate_in(slot.view.dtype, param)
        self._unhooked = list(zip(params, self._slots, strict=True))
        self.hook_new()

    def hook_new(self) -> None:
        for param, slot in self._unhooked:
            if param.requires_grad:
                # torch leaves this method without types.
                param.register_post_accumulate_grad_hook(slot.hook)  # type: ignore[no-untyped-call]
        self._unhooked = [(p, s) for p, s in self._unhooked if not p.requires_grad]

    def collect(self) -> frozenset[int]:
        """The parameters that have a gradient now; every one of them lies in its slot then."""
        present: list[int] = []
        for index, (param, slot) in enumerate(zip(self._params, self._slots, strict=True)):
            grad = param.grad
            if grad is not None:
                present.append(index)
                if not slot.holds(grad):
                    slot.take(grad)
        return frozenset(present)

    def divide(self, scale: torch.Tensor | float) -> None:
        """Divide each `p.grad` in place, with GradScaler.unscale_'s arithmetic."""
        inverse = torch.as_tensor(scale, dtype=torch.float64).reciprocal().float()
        with torch.no_grad():
            for param in self._params:
                if param.grad is not None:
                    param.grad.mul_(inverse)

    def is_finite(self, index: int) -> bool:
        return bool(self._slots[index].view.isfinite().all())


def converted(name: str, was: torch.dtype, now: torch.dtype) -> ModelMismatch:
    fact = f"{name} was {was} when the optimizer was wrapped and is {now} now"
    return ModelMismatch(fact, todo="Convert the model before run.optimizer is called")


def _accumulate_in(dtype: torch.dtype, param: nn.Parameter) -> None:
    """Low precision loses small gradients when it accumulates; torch can do so in float32."""
    if param.dtype is dtype:
        return
    grad, param.grad = param.grad, None
    param.grad_dtype = dtype
    if grad is not None:
        param.grad = grad.to(dtype)
