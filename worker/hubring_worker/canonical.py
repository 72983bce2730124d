"""One digest for one value, equal on every machine: of samples, indices, names of shards.

Against mistakes, not against people: xxh3. Files are sealed with a cryptographic hash, in `sealed`.
"""

import logging
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import xxhash

log = logging.getLogger(__name__)
_passed_over: set[str] = set()


def hexdigest(value: Any) -> str:
    """16 hexadecimal digits. Nothing is pickled; of an object that is none of the types below
    only the type's name counts, which the log says once, at debug.

    Types: None, bool, int, float, complex, str, bytes, paths, tensors, numpy's arrays and
    numbers, tuples, lists, mappings, sets, and dataclasses of these.
    """
    hasher = xxhash.xxh3_64()
    _feed(hasher, value)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    match value:
        case None | bool() | int() | float() | complex() | str() | PurePath():
            _put(hasher, type(value).__name__, str(value).encode(errors="surrogateescape"))
        case bytes() | bytearray():
            _put(hasher, "bytes", value)
        case torch.Tensor():
            _feed_tensor(hasher, value)
        case np.ndarray() | np.generic():
            _feed_array(hasher, np.asarray(value))
        case list() | tuple() | range():
            _feed_all(hasher, "sequence", list(value))
        case Mapping():
            items = sorted((hexdigest(key), hexdigest(item)) for key, item in value.items())
            _feed_all(hasher, "mapping", [part for item in items for part in item])
        case set() | frozenset():
            _feed_all(hasher, "set", sorted(map(hexdigest, value)))
        case _ if is_dataclass(value) and not isinstance(value, type):
            named = [(field.name, getattr(value, field.name)) for field in fields(value)]
            _feed_all(hasher, type(value).__name__, named)
        case _:
            _pass_over(hasher, type(value).__qualname__)


def _put(hasher: Any, kind: str, content: Any) -> None:
    """Length first, so that no two values run into one another."""
    hasher.update(f"{kind}:{len(content)}:".encode())
    hasher.update(content)


def _feed_all(hasher: Any, kind: str, values: list[Any]) -> None:
    _put(hasher, f"{kind} of {len(values)}", b"")
    for value in values:
        _feed(hasher, value)


def _feed_tensor(hasher: Any, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        _pass_over(hasher, f"Tensor, {tensor.layout}, {tensor.dtype}")
        return
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    shape = f"{tensor.dtype} {tuple(tensor.shape)}"
    _put(hasher, shape, flat.view(torch.uint8).numpy())


def _feed_array(hasher: Any, array: np.ndarray[Any, Any]) -> None:
    shape = f"{array.dtype.str} {array.shape}"
    if array.dtype.hasobject:
        _feed_all(hasher, shape, array.reshape(-1).tolist())
    else:
        _put(hasher, shape, np.ascontiguousarray(array).tobytes())


def _pass_over(hasher: Any, name: str) -> None:
    if name not in _passed_over:
        _passed_over.add(name)
        log.debug("%s has no canonical digest: its content is passed over", name)
    _put(hasher, "object", name.encode())
