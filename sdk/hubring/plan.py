"""What a cluster on this machine is to be."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What to start. `timeout` in seconds; `runs` is the folder of all runs, `tensorboard`
    one for event files ("": none).
    """

    workers: int = 2
    servers: int = 2
    mode: str = "async"
    seed: int = 0
    timeout: float = 10.0
    runs: Path = Path("runs")
    tensorboard: str = ""
