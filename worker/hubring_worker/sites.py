"""Whether a model still consists of the Parameter objects that were wrapped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn


class Site(NamedTuple):
    """`home[key]` was `thing`: a parameter, or a module on the way to one."""

    home: Mapping[str, Any]
    key: str
    thing: object


class Sites:
    """Where `params` lie in `model`. Looking there again is much cheaper than walking it."""

    def __init__(self, model: nn.Module, params: Sequence[nn.Parameter]) -> None:
        self._model, self._params = model, params
        self._sites = tuple(_sites(model, frozenset(params)))

    def lost(self) -> int | None:
        """The index of a parameter that is no longer in the model, or None."""
        if all(home.get(key) is thing for home, key, thing in self._sites):
            return None
        left = frozenset(self._model.parameters())
        for index, param in enumerate(self._params):
            if param not in left:
                return index
        # Moved within the model, as by `model.layer = torch.compile(model.layer)`.
        self._sites = tuple(_sites(self._model, frozenset(self._params)))
        return None


def _sites(model: nn.Module, params: frozenset[nn.Parameter]) -> Iterator[Site]:
    for module in model.modules():
        for key, child in module.named_children():
            if not params.isdisjoint(child.parameters()):
                yield Site(module._modules, key, child)  # noqa: SLF001 - see below
        for key, param in module.named_parameters(recurse=False, remove_duplicate=False):
            if param in params:
                # torch's public ways to an entry are ten times slower than its dict.
                yield Site(module._parameters, key, param)  # noqa: SLF001
