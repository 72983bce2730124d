"""A slot is held by one process, and free as soon as that process is gone, however it went."""

import subprocess
import sys

import pytest

from hubring_common.errors import UsageError
from hubring_server.slots import Slot

HOLD = """
import sys; from hubring_server.slots import Slot; from pathlib import Path
print(Slot(Path(sys.argv[1])).number, flush=True); sys.stdin.read()
"""


def holder(folder):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_each_process_takes_the_lowest_free_slot(tmp_path):
    processes = [holder(tmp_path) for _ in range(2)]
    numbers = sorted(int(process.stdout.readline()) for process in processes)
    assert numbers == [0, 1]
    third = Slot(tmp_path)
    assert third.number == 2
    for process in processes:
        process.kill()
        process.communicate()
    again = Slot(tmp_path)
    assert again.number == 0
    again.release()
    third.release()


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot use the state folder .*file"):
        Slot(tmp_path / "file")
