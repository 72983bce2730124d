"""hubring trains PyTorch models over many unreliable machines.

    import hubring

    run = hubring.init()
    loader = run.loader(dataset, batch_size=64, shuffle=True)
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=3e-4), model)

The rest of a training script stays as it is. Nothing is imported before it is used, so that the
commands which need no torch do not load it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubring.start import init
    from hubring_common.errors import HubringError
    from hubring_worker.run import Run

__version__ = "0.1.0"
__all__ = ["HubringError", "Run", "__version__", "init"]

_HOMES = {
    "HubringError": "hubring_common.errors",
    "Run": "hubring_worker.run",
    "init": "hubring.start",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hubring' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
