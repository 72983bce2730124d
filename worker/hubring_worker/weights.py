"""Parameters as views of flat memory, and whether they still are.

torch lets a user move, convert, replace and overwrite parameters at any time. Where the
meaning is clear they are taken back; else they are refused by name, since the hub's weights
would silently win.
"""

from collections.abc import Sequence

import torch
from torch import nn

from hubring_common.errors import ModelMismatch
from hubring_common.layout import ParamSpec
from hubring_worker.hooks import Place, converted
from hubring_worker.sites import Sites


class Weights:
    """`places[i]` makes the view that `params[i]`, described by `specs[i]`, is to be.

    Values are kept. Before the first `settle()` the user may write into them, afterwards not.
    """

    def __init__(
        self,
        specs: Sequence[ParamSpec],
        model: nn.Module,
        params: Sequence[nn.Parameter],
        places: Sequence[Place],
    ) -> None:
        self._specs, self._params, self._places = specs, params, places
        self._sites = Sites(model, params)
        self._versions: list[int] = []
        for param, place in zip(params, places, strict=True):
            _move(param, place())
        self._addresses = [param.data_ptr() for param in params]

    @property
    def are_settled(self) -> bool:
        return bool(self._versions)

    def settle(self) -> None:
        """Tell autograd that the weights were written through other tensors than these."""
        torch.autograd.graph.increment_version(self._params)
        self._versions = self._seen()

    def check(self) -> None:
        """Raises ModelMismatch, naming the first parameter that isn't what it was."""
        lost = self._sites.lost()
        if lost is not None:
            fact = f"{self._specs[lost].name} was replaced by another object since it was wrapped"
            raise ModelMismatch(fact, todo="Change the model before run.optimizer is called")
        if [param.data_ptr() for param in self._params] != self._addresses:
            self._take_back()
        if self.are_settled and (seen := self._seen()) != self._versions:
            pairs = zip(seen, self._versions, strict=True)
            raise self._overwritten(next(i for i, (now, then) in enumerate(pairs) if now != then))

    def _seen(self) -> list[int]:
        # Public only as increment_version, the writing half.
        return [param._version for param in self._params]  # noqa: SLF001

    def _take_back(self) -> None:
        # Views are made anew: share_memory() moves the storage under one that was kept.
        for index, (param, place) in enumerate(zip(self._params, self._places, strict=True)):
            if param.data_ptr() != self._addresses[index]:
                view = place()
                self._check_kind(index, param, view)
                if self.are_settled and not torch.equal(param, view):
                    raise self._overwritten(index)
                _move(param, view)

    def _check_kind(self, index: int, param: nn.Parameter, view: torch.Tensor) -> None:
        name = self._specs[index].name
        if param.dtype is not view.dtype:
            raise converted(name, view.dtype, param.dtype)
        if (param.shape, param.device) != (view.shape, view.device):
            fact = f"{name} was {list(view.shape)} on {view.device} when the optimizer was wrapped"
            now = f"{list(param.shape)} on {param.device}"
            todo = "Change the model before run.optimizer is called"
            raise ModelMismatch(f"{fact} and is {now} now", todo=todo)

    def _overwritten(self, index: int) -> ModelMismatch:
        fact = f"{self._specs[index].name} was changed by something else than optimizer.step()"
        todo = "The hub would undo it: load or initialize weights before run.optimizer is called"
        return ModelMismatch(fact, todo=todo)


def _move(param: nn.Parameter, view: torch.Tensor) -> None:
    with torch.no_grad():
        view.copy_(param)
    if param.numel():
        param.data = view
