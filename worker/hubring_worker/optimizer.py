"""The optimizer that a script holds: still an instance of its class, but its step is the hub's.

Hyperparameters stay here, in `param_groups`, where schedulers and users change them, and
travel with every step. What torch keeps in `state` lives on the hub.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from operator import is_not
from typing import Any, ClassVar, NoReturn, TypeVar, cast

import torch
from torch.optim import Optimizer

from hubring_common.errors import ModelMismatch
from hubring_common.optimizers import hypers_of
from hubring_worker.contracts import Hub, Step
from hubring_worker.flat import FlatModel

log = logging.getLogger(__name__)

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class HubStep(Optimizer):
    """What `wrap` mixes into the user's optimizer class, in front of it."""

    _base: ClassVar[type[Optimizer]]
    _flat: FlatModel
    _hub: Hub
    _held: list[torch.Tensor]
    _steps: int
    _step_supports_amp_scaling: bool

    def take_over(self, optimizer: Optimizer, flat: FlatModel, hub: Hub) -> None:
        """In place of __init__: share everything with `optimizer` but its state."""
        self.__dict__.update(optimizer.__dict__)
        self.state = defaultdict(dict)
        self._flat, self._hub, self._steps = flat, hub, 0
        self._held = _params(self)
        # On the instance, where torch's fused optimizers have one of their own.
        self._step_supports_amp_scaling = True
        self._patch_step_function()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Send the gradients, take the new weights, return the closure's loss.

        A GradScaler's overflow sends no gradient. Raises ModelMismatch where the model was
        changed, and whatever the hub raises.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._flat.check()
        self._check_held()
        present = frozenset[int]() if self._overflowed() else self._gradients()
        self._hub.step(Step(present, hypers_of(self)))
        self._flat.landed()
        self._steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with an empty state, and "hubring" besides, which torch ignores."""
        return {**super().state_dict(), "hubring": {"steps": self._steps}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the hyperparameters. The state stays the hub's."""
        if _is_trained(state_dict["state"].values()):
            log.info("the optimizer state that was loaded is not used: the hub keeps its own")
        super().load_state_dict({**state_dict, "state": {}})

    def add_param_group(self, param_group: dict[str, Any]) -> NoReturn:
        """Refused: the hub holds the parameters of the first step for good."""
        keys = ", ".join(map(str, param_group))
        fact = f"a param group ({keys}) was added after the optimizer was wrapped"
        raise ModelMismatch(fact, todo="Add it before run.optimizer is called")

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a pickle is an ordinary optimizer of the user's class: it has no hub."""
        return _plain, (self._base, self.param_groups, self.defaults)

    def _overflowed(self) -> bool:
        # GradScaler.step() sets both on an optimizer that has _step_supports_amp_scaling.
        return bool(getattr(self, "found_inf", None))

    def _gradients(self) -> frozenset[int]:
        scale = getattr(self, "grad_scale", None)
        if scale is not None:  # None as well where the user called unscale_ himself
            self._flat.divide_gradients(scale)
        return self._flat.present()

    def _check_held(self) -> None:
        held = _params(self)
        if len(held) != len(self._held) or any(map(is_not, held, self._held)):
            fact = "the optimizer's param groups hold other parameters than when it was wrapped"
            raise ModelMismatch(fact, todo="Change them before run.optimizer is called")


def wrap(optimizer: AnyOptimizer, flat: FlatModel, hub: Hub) -> AnyOptimizer:
    """`optimizer`, which `adopt` let pass, with `hub` behind its step.

    The result is an instance of its class and shares its param groups and hooks. A state that
    it has gathered is left behind: the hub begins with none.
    """
    if _is_trained(optimizer.state.values()):
        log.info("the optimizer's state is not used: the hub begins with an empty one")
    base: Any = type(optimizer)
    cls: Any = _hub_class(base)
    wrapped: HubStep = cls.__new__(cls)
    wrapped.take_over(optimizer, flat, hub)
    return cast("AnyOptimizer", wrapped)


@cache
def _hub_class(base: type[Optimizer]) -> type:
    """Named as its base, so that repr and profiler see no difference."""
    return type(base.__name__, (HubStep, base), {"_base": base})


def _plain(
    base: Callable[..., Optimizer], groups: list[dict[str, Any]], defaults: Mapping[str, Any]
) -> Optimizer:
    # The class's own, since Adagrad makes its first state when it is built.
    accepted = signature(base).parameters
    return base(groups, **{name: value for name, value in defaults.items() if name in accepted})


def _params(optimizer: Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _is_trained(states: Any) -> bool:
    """Whether a step was made. Adagrad has a state from the start, of step 0."""
    return any(state and float(state.get("step", 1)) > 0 for state in states)
