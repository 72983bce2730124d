"""`docker compose` as a user runs it, under a project name of the test's own."""

import json
import os
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Compose:
    """One project: its containers, volumes and network go with `down`."""

    def __init__(self, name: str, **environment: str) -> None:
        self.name = name
        ports = {"HUBRING_PORT": free_port(), "HUBRING_OPS_PORT": free_port()}
        self._environment = {**os.environ, **ports, "COMPOSE_PROJECT_NAME": name, **environment}
        self._files: tuple[str, ...] = ()
        self.address = f"127.0.0.1:{ports['HUBRING_PORT']}"

    def add_file(self, path: Path) -> None:
        base = str(ROOT / "docker-compose.yml")
        self._files = ("-f", base, "-f", str(path))

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["docker", "compose", *self._files, *words],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    @staticmethod
    def docker(*words: str) -> str:
        return subprocess.check_output(["docker", *words], text=True, timeout=PATIENCE)

    def exit_codes(self) -> dict[str, int]:
        """Container -> exit code, of all that have ended."""
        lines = self("ps", "-a", "--format", "json").stdout.strip()
        rows = json.loads(lines) if lines.startswith("[") else map(json.loads, lines.splitlines())
        return {row["Name"]: row["ExitCode"] for row in rows if row["State"] == "exited"}

    def results(self, folder: Path) -> Path:
        """The run's folder, copied out of the volume."""
        self("cp", "coordinator:/runs", str(folder))
        (run,) = (path for path in (folder / "runs").iterdir() if path.is_dir())
        return run

    def down(self) -> None:
        self("down", "-v", "--remove-orphans", "-t", "2", check=False)
