"""The command `hubring` as a user runs it: real processes, in a folder of the test's own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
TINY = str(SCRIPTS / "tiny.py")
PATIENCE = 60.0


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HUBRING_")}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hubring", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hubring(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    process = start(folder, *arguments)
    return finish(process)


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it hangs\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition, what: str, timeout: float = PATIENCE):
    """What `condition` returns once it is true. Fails with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.05)
    return value


def processes_of(folder: Path) -> list[int]:
    """Processes that were started from `folder`, zombies apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                is_ours = (entry / "cwd").readlink() == folder.resolve()
                is_dead = (entry / "stat").read_text().rpartition(") ")[2][0] in "ZX"
            except OSError:
                continue
            if is_ours and not is_dead:
                found.append(int(entry.name))
    return found


def interrupt(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
