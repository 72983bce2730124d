import subprocess

import pytest
from containers.compose import ROOT


@pytest.fixture(scope="session", autouse=True)
def images():
    """Built once a session; every test starts from the same images."""
    subprocess.run(["docker", "compose", "build", "-q"], cwd=ROOT, check=True, timeout=540)
