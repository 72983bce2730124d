"""The cluster that a plain `python train.py` gets: it starts with the script and ends with it."""

import signal
import sys
import threading
from types import FrameType

from hubring.control import Control
from hubring.local import LocalCluster
from hubring.plan import LocalPlan
from hubring_common.errors import HubringError
from hubring_common.report import figures, outcome
from hubring_common.timing import Timing


class EmbeddedCluster:
    """Coordinator and servers beside the script's own process, which is the only worker."""

    def __init__(self, plan: LocalPlan) -> None:
        self._local = LocalCluster(plan)
        self._timing = Timing(plan.timeout)

    def start(self) -> tuple[str, str, Timing]:
        """(coordinator's address, token, timing) once the coordinator answers."""
        try:
            self._local.start()
        except BaseException:
            self._local.close()
            raise
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGINT, self._drain)
        return self._local.address, self._local.token, self._timing

    def close(self) -> None:
        """End the processes, and say how the run ended and where its results lie."""
        self._local.close()
        if (status := self._local.final_status()) is not None:
            lines = [outcome(status, str(self._local.folder)), figures(status, status.seconds)]
            lines += [f"ledger  {status.ledger}"] if status.ledger else []
            sys.stderr.write("\n".join(lines) + "\n")

    def _drain(self, _signal: int, _frame: FrameType | None) -> None:
        """The first Ctrl-C: no more data. The second does what it always does."""
        signal.signal(signal.SIGINT, self._usual)
        sys.stderr.write("draining; Ctrl-C again ends at once\n")
        threading.Thread(target=self._ask_to_drain, daemon=True).start()

    def _ask_to_drain(self) -> None:
        try:
            with Control(self._local.address, self._local.token) as control:
                control.stop("Ctrl-C")
        except HubringError as error:
            sys.stderr.write(f"{error}\n")
