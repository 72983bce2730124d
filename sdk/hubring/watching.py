"""The commands about a running cluster, and about this machine: status, stop, drain, stacks,
doctor, top. `cli` makes them commands. Loads no torch itself.
"""

from pathlib import Path

from hubring import options as o
from hubring.terminal import console, print_json
from hubring_common.timing import Timing


def status(
    *,
    coordinator: o.Coordinator = "",
    token_file: o.TokenFile = None,
    runs: o.Runs = Path("runs"),
    ledger: bool = False,
    json: o.Json = False,
) -> int:
    """Show a running cluster: members, shards, data, the run's state.

    Without --coordinator: the newest cluster that runs below the folder --runs.

    Parameters
    ----------
    ledger
        Instead, of each batch: who trained it, when, and with which push it counted.

    """
    from hubring import inspection
    from hubring import ledger as book

    if ledger:
        pages = book.ledger(coordinator, token_file, runs)
        print_json(book.as_json(pages)) if json else book.draw(pages, console())
        return 0
    shown = inspection.status(coordinator, token_file, runs)
    if json:
        print_json(inspection.as_json(shown))
    else:
        inspection.draw(shown, console())
    return 0


def stop(
    *,
    coordinator: o.Coordinator = "",
    token_file: o.TokenFile = None,
    runs: o.Runs = Path("runs"),
    why: str = "hubring stop",
    now: bool = False,
) -> int:
    """End a running cluster's run: workers finish what they hold, the model is written.

    Without --coordinator: of the newest cluster that runs below the folder --runs.

    Parameters
    ----------
    why
        The reason, as the run's record shows it.
    now
        End it at once, without a model.

    """
    from hubring.inspection import reach

    with reach(coordinator, token_file, runs) as control:
        control.stop(why, at_once=now)
    console().print("the run ends now" if now else "the run drains: hubring status shows it")
    return 0


def drain(
    member: str,
    /,
    *,
    coordinator: o.Coordinator = "",
    token_file: o.TokenFile = None,
    runs: o.Runs = Path("runs"),
    why: str = "hubring drain",
) -> int:
    """Let one worker finish its batch, give the others back and leave; the run goes on.

    Without --coordinator: of the newest cluster that runs below the folder --runs.

    Parameters
    ----------
    member
        The worker's name, such as worker-1.
    why
        The reason, as the run's record shows it.

    """
    from hubring.inspection import reach

    with reach(coordinator, token_file, runs) as control:
        control.drain(member, why)
    console().print(f"{member} drains")
    return 0


def stacks(
    member: str = "",
    /,
    *,
    coordinator: o.Coordinator = "",
    token_file: o.TokenFile = None,
    runs: o.Runs = Path("runs"),
    timeout: o.Timeout = 10.0,
    json: o.Json = False,
) -> int:
    """Show what every process of a running cluster does now: its threads' Python stacks.

    Without --coordinator: of the newest cluster that runs below the folder --runs.

    Parameters
    ----------
    member
        Only this one's, such as worker-0.

    """
    from hubring import stacks as inspected

    shown = inspected.stacks(member, coordinator, token_file, runs, Timing(timeout))
    if json:
        print_json(inspected.as_json(shown))
    else:
        inspected.draw(shown, console())
    return 0


def doctor(
    coordinator: str = "",
    /,
    *,
    token_file: o.TokenFile = None,
    runs: o.Runs = Path("runs"),
    json: o.Json = False,
) -> int:
    """Check this machine, and whether a coordinator can be used from here.

    Parameters
    ----------
    coordinator
        HOST:PORT of the coordinator, if there is one already.

    """
    from hubring.doctor import examine, show
    from hubring.doctor.finding import exit_code

    findings = examine(coordinator, token_file, runs)
    if json:
        print_json(show.as_json(findings))
    else:
        show.draw(findings, console())
    return exit_code(findings)


def top(
    *,
    coordinator: o.Coordinator = "",
    token_file: o.TokenFile = None,
    runs: o.Runs = Path("runs"),
    timeout: o.Timeout = 10.0,
    json: o.Json = False,
) -> int:
    """Watch a running cluster in the terminal: what the page shows. q or Ctrl-C ends.

    Without --coordinator: the newest cluster that runs below the folder --runs. Elsewhere than
    on a terminal it is printed once.
    """
    from hubring.inspection import reach
    from hubring.top import Top

    with Top(reach(coordinator, token_file, runs), Timing(timeout)) as watched:
        if json:
            print_json(watched.look())
        else:
            watched.show(console())
    return 0
