"""The examples that come along, and scripts that a person names."""

from importlib.util import find_spec
from pathlib import Path

from hubring_common.errors import UsageError

NAMES = (
    "digits",
    "linear_regression",
    "char_rnn",
    "char_gpt",
    "digits_lightning",
    "digits_accelerate",
)
NEEDS = {"digits_lightning": "lightning", "digits_accelerate": "accelerate"}
"""Examples that need a library of their own, which is the extra of its name."""
_INSTALLED = Path(__file__).parent / "examples"
_CHECKOUT = Path(__file__).parents[2] / "examples"


def find(name: str) -> Path:
    """The example's file. Raises UsageError for an unknown name, or where its library is not."""
    if name not in NAMES:
        raise UsageError(f"there is no example {name!r}", todo=f"there are {', '.join(NAMES)}")
    if (library := NEEDS.get(name)) and find_spec(library) is None:
        fact = f"the example {name} needs {library}, which is not installed"
        raise UsageError(fact, todo=f"pip install 'hubring[{library}]'")
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return folder / f"{name}.py"


def require_script(script: Path) -> Path:
    """`script`, if it is a file, or the example of that name."""
    if script.is_file():
        return script
    if str(script) in NAMES:
        return find(str(script))
    raise UsageError(f"there is no script {script}", todo="give the path of a Python file")
