"""Runs a training script to its very end: `python -m hubring.script train.py args`.

The script is `__main__` as ever. What it does not need to know: its lifeline, and that its run
is finished after a good end, or told of the error after a bad one.
"""

import os
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType

from hubring import start
from hubring_common import logs
from hubring_common.errors import HubringError, RunEnded, ScriptFailed
from hubring_common.lifeline import Lifeline


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--lifeline"]:
        Lifeline(int(arguments[1]))
        arguments = arguments[2:]
    start.is_worker = True
    logs.configure("worker", style=os.environ.get("HUBRING_LOG_STYLE", "auto"))
    return run_script(arguments[0], arguments)


def run_script(script: str, arguments: list[str]) -> int:
    """The exit code. `arguments` becomes the script's `sys.argv`."""
    sys.argv[:] = arguments
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit_:
        return _ended(exit_.code)
    except BaseException as error:  # noqa: BLE001 - whatever the script raised is its end
        return fail(error, script)
    return _ended(None)


def _ended(code: object) -> int:
    """The script came to its end, or called sys.exit with `code`."""
    if code is None or code == 0:
        return close_run()
    if not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
    report(ScriptFailed(f"the script ended with exit status {code}"))
    return code if isinstance(code, int) else 1


def close_run() -> int:
    try:
        start.end()
    except HubringError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def fail(error: BaseException, script: str) -> int:
    """Report `error` to the run and to standard error."""
    text = traceback_of(error, script)
    report(error, text)
    # An error of the run itself is one line: the traceback that matters is another worker's.
    sys.stderr.write(f"{error}\n" if isinstance(error, RunEnded) else text)
    return error.exit_code if isinstance(error, HubringError) else 1


def report(error: BaseException, text: str = "") -> None:
    """Tell the run, if it can be told."""
    try:
        start.end(error, text)
    except HubringError as unheard:
        sys.stderr.write(f"the cluster could not be told: {unheard}\n")


def traceback_of(error: BaseException, script: str) -> str:
    """The traceback from the script's own first line on."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != script:
        frame = frame.tb_next
    shown = frame or error.__traceback__
    return "".join(traceback.format_exception(type(error), error, shown))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
