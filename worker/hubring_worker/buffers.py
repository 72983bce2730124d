"""The running statistics of a model's normalizing layers, pooled over the workers.

Each worker's layers see only its own batches. The mean over the workers of a layer's means, and
of its second moments, is what one worker would have had; the mean of the variances alone is not:
it lacks the spread of the means.
"""

import logging
from typing import Any

import torch
from torch import nn

from hubring_common.bounded import BUFFERS_LIMIT

log = logging.getLogger(__name__)


class Buffers:
    """Of every layer of `model` that has `running_mean` and `running_var`: BatchNorm, and its
    like. Other buffers are the chief's at first (`still`), then each worker's own.
    """

    def __init__(self, model: nn.Module) -> None:
        layers: list[Any] = [module for module in model.modules() if _has_statistics(module)]
        size = 16 * sum(layer.running_mean.numel() for layer in layers)
        is_small = size <= BUFFERS_LIMIT
        if not is_small:
            words = "%d bytes of running statistics stay each worker's own: at most %d are pooled"
            log.warning(words, size, BUFFERS_LIMIT)
        self._layers = layers if is_small else []

    def packed(self) -> bytes:
        """Means and second moments, in the order of the layers, as little-endian float64s."""
        parts = [part for layer in self._layers for part in _moments(layer)]
        vector = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)
        return bytes(vector.numpy().astype("<f8").tobytes())

    def land(self, pooled: bytes) -> None:
        """Write the mean of all workers' `packed()` into the layers; nothing where it is empty."""
        if not pooled:
            return
        vector: Any = torch.frombuffer(bytearray(pooled), dtype=torch.float64)
        sizes = [layer.running_mean.numel() for layer in self._layers for _ in range(2)]
        parts = iter(vector.split(sizes))
        with torch.no_grad():
            for layer, mean, second in zip(self._layers, parts, parts, strict=True):
                layer.running_mean.copy_(mean.view_as(layer.running_mean))
                variance = (second - mean.square()).clamp_(min=0)
                layer.running_var.copy_(variance.view_as(layer.running_var))


def _has_statistics(module: Any) -> bool:
    found = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return all(isinstance(value, torch.Tensor) for value in found)


def _moments(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean = layer.running_mean.detach().to("cpu", torch.float64).reshape(-1)
    variance = layer.running_var.detach().to("cpu", torch.float64).reshape(-1)
    return mean, variance + mean.square()
