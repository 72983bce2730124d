"""The options that commands share, as cyclopts reads them: flags > HUBRING_* > hubring.toml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from cyclopts import Group, Parameter, validators

from hubring.plan import LocalPlan

CLUSTER = Group("Cluster", sort_key=1)
PLACE = Group("Addresses and files", sort_key=2)
OUTPUT = Group("Output", sort_key=3)
_COUNT = validators.Number(gte=1, lte=512)

Mode: TypeAlias = Annotated[
    Literal["async"], Parameter(group=CLUSTER, help="How the workers step.")
]
Workers: TypeAlias = Annotated[
    int, Parameter(group=CLUSTER, validator=_COUNT, help="Workers to start, or to expect.")
]
Servers: TypeAlias = Annotated[
    int,
    Parameter(
        group=CLUSTER,
        validator=_COUNT,
        help="Servers to spread the weights over; the run waits for that many.",
    ),
]
Seed: TypeAlias = Annotated[
    int,
    Parameter(
        group=CLUSTER,
        validator=validators.Number(gte=0, lt=1 << 63),
        help="Of the data's order and augmentation.",
    ),
]
Timeout: TypeAlias = Annotated[
    float,
    Parameter(
        group=CLUSTER,
        validator=validators.Number(gte=0.2, lte=3600),
        help="Seconds until a silent member counts as dead; every other wait follows from it.",
    ),
]
Coordinator: TypeAlias = Annotated[
    str, Parameter(group=PLACE, help="HOST:PORT of the coordinator.")
]
TokenFile: TypeAlias = Annotated[
    Path | None,
    Parameter(group=PLACE, help="File with the run's token, one line; the same at every member."),
]
Bind: TypeAlias = Annotated[
    str, Parameter(group=PLACE, help="HOST:PORT to listen on; port 0 takes a free one.")
]
Ops: TypeAlias = Annotated[
    str,
    Parameter(group=PLACE, help="HOST:PORT for probes, metrics and the coordinator's page."),
]
State: TypeAlias = Annotated[
    Path, Parameter(group=PLACE, help="Folder for what must outlive a restart.")
]
Runs: TypeAlias = Annotated[
    Path, Parameter(group=PLACE, help="Folder below which each run has one of its own.")
]
Plaintext: TypeAlias = Annotated[
    bool,
    Parameter(group=PLACE, negative="", help="Allow unencrypted traffic beyond this machine."),
]
TensorBoard: TypeAlias = Annotated[
    str,
    Parameter(group=OUTPUT, help="Folder for event files; needs hubring[tensorboard]."),
]
Json: TypeAlias = Annotated[
    bool, Parameter(group=OUTPUT, negative="", help="One JSON object on standard output.")
]
LogLevel: TypeAlias = Annotated[
    Literal["debug", "info", "warning", "error"],
    Parameter(group=OUTPUT, help="The least level of log lines."),
]
LogStyle: TypeAlias = Annotated[
    Literal["auto", "readable", "json"],
    Parameter(group=OUTPUT, help="Log lines; auto is readable on a terminal, else JSON."),
]
Lifeline: TypeAlias = Annotated[int | None, Parameter(show=False)]
"""A descriptor that a launcher passes on."""
Script: TypeAlias = Annotated[Path, Parameter(help="A training script.")]
Arguments: TypeAlias = Annotated[str, Parameter(help="After --: the script's own arguments.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A cluster on this machine, as `hubring run` and `hubring demo` start it."""

    workers: Workers = 2
    servers: Servers = 2
    mode: Mode = "async"
    seed: Seed = 0
    timeout: Timeout = 10.0
    runs: Runs = Path("runs")
    tensorboard: TensorBoard = ""
    json: Json = False

    def plan(self) -> LocalPlan:
        shape = (self.workers, self.servers, self.mode, self.seed, self.timeout, self.runs)
        return LocalPlan(*shape, tensorboard=self.tensorboard)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What every process of a cluster is told."""

    token_file: TokenFile = None
    timeout: Timeout = 10.0
    log_level: LogLevel = "info"
    log_style: LogStyle = "auto"
    lifeline: Lifeline = None
