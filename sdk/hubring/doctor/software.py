"""Versions: Python, the libraries that hubring needs, what its generated code asks for, extras.

Read from the distributions' own metadata, so that nothing is imported here that might fail.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from hubring import __version__
from hubring.doctor.finding import Finding, Grade

SUBJECT = "software"
NAMED = ("torch", "grpcio", "protobuf", "numpy", "safetensors")
"""Requirements that get a line of their own even where all is well."""
_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_GENERATED = re.compile(r"Protobuf Python Version: ([\d.]+)")
FOREIGN = {"dev"}
"""Extras that are for work on hubring itself."""


def check() -> Iterator[Finding]:
    requirements = _own("Requires-Dist") or NAMED
    yield _python("".join(_own("Requires-Python")))
    for requirement in requirements:
        if "extra ==" not in requirement:
            yield from _requirement(requirement)
    yield _generated()
    yield from _extras(_own("Provides-Extra"), requirements)


def _own(field: str) -> Sequence[str]:
    """What hubring's distribution says. Nothing where it is no distribution, as in its images."""
    try:
        return metadata.metadata("hubring").get_all(field) or ()
    except metadata.PackageNotFoundError:
        return ()


def _python(asked: str) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fact = f"{__version__} on Python {version} at {sys.executable}"
    return _graded("hubring", fact, f"use a Python that is {asked}", fits=_fits(version, asked))


def _requirement(requirement: str) -> Iterator[Finding]:
    name = _name(requirement)
    asked = requirement.split(";", maxsplit=1)[0].removeprefix(name).strip()
    installed = installed_version(name)
    fits = installed is not None and _fits(installed, asked)
    if not fits or name in NAMED:
        fact = f"{installed or 'not installed'} (needs {asked or 'any'})"
        todo = "" if fits else f"pip install '{requirement.split(';', maxsplit=1)[0].strip()}'"
        yield _graded(name, fact, todo, fits=fits)


def _generated() -> Finding:
    """Generated code refuses a protobuf that is older than its generator."""
    spec = find_spec("hubring_proto.v1")
    folder = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
    found = _GENERATED.search((folder / "coordinator_pb2.py").read_text())
    wanted, installed = found[1] if found else "0", installed_version("protobuf") or "0"
    fits = _numbers(installed) >= _numbers(wanted)
    fact = f"made by protobuf {wanted}; here runs {installed}"
    return _graded("generated code", fact, f"pip install 'protobuf>={wanted}'", fits=fits)


def _extras(extras: Iterable[str], requirements: Iterable[str]) -> Iterator[Finding]:
    for extra in extras:
        names = [_name(r) for r in requirements if re.search(rf"extra == ['\"]{extra}['\"]", r)]
        if extra in FOREIGN or not names:
            continue
        versions = [f"{name} {installed_version(name) or 'not installed'}" for name in names]
        has_all = all(map(installed_version, names))
        how = "" if has_all else f", optional: pip install 'hubring[{extra}]'"
        yield Finding(SUBJECT, f"extra {extra}", ", ".join(versions) + how)


def torch_build() -> Iterator[Finding]:
    """Imports torch, which takes a second or more: call it last."""
    began = time.monotonic()
    try:
        import torch
    except (ImportError, OSError) as error:  # a build for another machine fails as either
        todo = "install a torch that fits this machine"
        yield Finding(SUBJECT, "torch build", f"cannot be loaded: {error}", Grade.PROBLEM, todo)
        return
    seconds = time.monotonic() - began
    capability = torch.backends.cpu.get_cpu_capability()
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    fact = f"{torch.__version__}, {capability}, {cuda}, loaded in {seconds:.1f} s"
    if torch.cuda.is_available():
        todo = "only models on the CPU are tested"
        fact += f", {torch.cuda.device_count()} GPUs"
        yield Finding(SUBJECT, "torch build", fact, Grade.NOTE, todo)
    else:
        yield Finding(SUBJECT, "torch build", fact)


# --- versions ------------------------------------------------------------------------------


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _graded(about: str, fact: str, todo: str, *, fits: bool) -> Finding:
    return Finding(SUBJECT, about, fact, *(() if fits else (Grade.PROBLEM, todo)))


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    return found[0] if found else requirement


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: (2, 13, 0) of "2.13.0+cpu"."""
    found = re.match(r"[\d.]*\d", version)
    numbers = [int(part) for part in found[0].split(".")] if found else [0]
    return (*numbers, 0, 0, 0)[:4]


def _fits(version: str, asked: str) -> bool:
    """Of `>=` and `<` alone, which is what hubring's own requirements use."""
    here = _numbers(version)
    least = all(here >= _numbers(bound) for bound in re.findall(r">=\s*([\d.]+)", asked))
    return least and all(
        here < _numbers(bound) for bound in re.findall(r"<(?!=)\s*([\d.]+)", asked)
    )
