"""The command `hubring`: reads options, once, and hands plain values on. Loads no torch itself."""

import sys
from pathlib import Path

from cyclopts import App
from cyclopts.config import Env, Toml

from hubring import __version__, data, watching
from hubring import options as o
from hubring.terminal import console, print_json
from hubring_common.errors import HubringError

app = App(
    name="hubring",
    help="Trains PyTorch models over many machines: parameter servers, workers, a coordinator.",
    version=__version__,
    help_format="plaintext",
    config=[Env("HUBRING_", command=False, show=False), Toml("hubring.toml")],
)
app.command(data.app)
for command in (
    watching.status,
    watching.top,
    watching.stop,
    watching.drain,
    watching.stacks,
    watching.doctor,
):
    app.command(command)
LOCAL, MEMBER = o.Local(), o.Member()


@app.command
def demo(*arguments: o.Arguments, example: str = "digits", local: o.Local = LOCAL) -> int:
    """Train an example on a cluster of processes on this machine, without Docker.

    Parameters
    ----------
    example
        digits (a CNN on handwritten digits), linear_regression, char_rnn, char_gpt,
        digits_lightning or digits_accelerate.

    """
    from hubring.catalogue import find

    return _launch([str(find(example)), *arguments], example, local)


@app.command
def run(script: o.Script, /, *arguments: o.Arguments, local: o.Local = LOCAL) -> int:
    """Train your script on a cluster of processes on this machine.

    For example: hubring run train.py --workers 4 -- --lr 0.1
    """
    from hubring.catalogue import require_script

    return _launch([str(require_script(script)), *arguments], script.stem, local)


@app.command
def coordinator(
    *,
    member: o.Member = MEMBER,
    servers: o.Servers = 1,
    workers: o.Workers = 1,
    mode: o.Mode = "async",
    seed: o.Seed = 0,
    bind: o.Bind = "127.0.0.1:7077",
    ops: o.Ops = "127.0.0.1:0",
    state: o.State = Path("hubring-state/coordinator"),
    run_id: str = "",
    run_dir: str = "runs/{run}",
    plaintext: o.Plaintext = False,
    make_token: bool = False,
    forming_timeout: float = 120.0,
    tensorboard: o.TensorBoard = "",
) -> int:
    """Serve one run: members, data, the run's life. Ends when the run does, with its exit code.

    Parameters
    ----------
    run_id
        A name for the run; by default one is made, or the unfinished run is gone on with.
    run_dir
        Folder for the run's results, the same path at every member; {run} is the run's id.
    make_token
        Write a new token into the token file if there is none.
    forming_timeout
        Seconds without progress until a run that does not form has failed.

    """
    from hubring import members

    return members.coordinator(
        member,
        servers=servers,
        workers=workers,
        mode=mode,
        seed=seed,
        bind=bind,
        ops=ops,
        state=state,
        run=run_id,
        run_dir=run_dir,
        plaintext=plaintext,
        make_token=make_token,
        forming_timeout=forming_timeout,
        tensorboard=tensorboard,
    )


@app.command
def server(
    *,
    coordinator: o.Coordinator,
    member: o.Member = MEMBER,
    bind: o.Bind = "127.0.0.1:0",
    ops: o.Ops = "127.0.0.1:0",
    state: o.State = Path("hubring-state/servers"),
    threads: int = 1,
    plaintext: o.Plaintext = False,
) -> int:
    """Hold a shard of the weights and apply the workers' gradients. Ends with the run.

    Parameters
    ----------
    threads
        Threads that apply one record.

    """
    from hubring import members

    return members.server(
        member,
        coordinator=coordinator,
        bind=bind,
        ops=ops,
        state=state,
        threads=threads,
        plaintext=plaintext,
    )


@app.command
def worker(
    script: o.Script,
    /,
    *arguments: o.Arguments,
    coordinator: o.Coordinator,
    member: o.Member = MEMBER,
) -> int:
    """Run a training script as one worker; start it again where it was cut off.

    For example: hubring worker train.py --coordinator hub:7077 --token-file token -- --lr 0.1
    """
    from hubring import members
    from hubring.catalogue import require_script

    command = [str(require_script(script)), *arguments]
    return members.worker(member, command, coordinator=coordinator)


def _launch(script: list[str], example: str, local: o.Local) -> int:
    from hubring.display import Display
    from hubring.launch import Launch

    with Display(console(stderr=local.json)) as display:
        outcome = Launch(local.plan(), script, example, display).run()
    if local.json:
        print_json(outcome.summary)
    return outcome.exit_code


def main() -> None:
    """Exit codes: README, "Exit codes"."""
    try:
        code = app(result_action="return_value")
    except HubringError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    except SystemExit as exit_:  # cyclopts on a mistyped option, after its own words
        code = 2 if exit_.code else 0
    sys.exit(code if isinstance(code, int) else 0)
