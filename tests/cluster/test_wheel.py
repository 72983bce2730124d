"""The wheel works alone: unpacked in a folder of its own, its command runs its examples."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from cluster.command import environment, finish

ROOT = Path(__file__).parents[2]


def test_the_wheel_brings_command_and_examples(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run([*build, "--disable-pip-version-check"], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("hubring-*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        assert "Requires-Dist: torch" in archive.read(metadata).decode()
    run = "import hubring.cli, sys; assert 'site/hubring' in hubring.__file__; hubring.cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", run, "demo", "--example", "linear_regression", "--json"],
        cwd=empty,
        env={**environment(), "PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["model"]).is_file()
