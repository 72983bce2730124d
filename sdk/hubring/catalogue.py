"""The examples that come along, and scripts that a person names."""

from pathlib import Path

from hubring_common.errors import UsageError

NAMES = ("digits", "linear_regression", "char_rnn")
_INSTALLED = Path(__file__).parent / "examples"
_CHECKOUT = Path(__file__).parents[2] / "examples"


def find(name: str) -> Path:
    """The example's file. Raises UsageError for an unknown name."""
    if name not in NAMES:
        raise UsageError(f"there is no example {name!r}", todo=f"there are {', '.join(NAMES)}")
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return folder / f"{name}.py"


def require_script(script: Path) -> Path:
    """`script`, if it is a file, or the example of that name."""
    if script.is_file():
        return script
    if str(script) in NAMES:
        return find(str(script))
    raise UsageError(f"there is no script {script}", todo="give the path of a Python file")
