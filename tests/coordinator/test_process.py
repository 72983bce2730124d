"""From settings to exit code: `serve` in a thread, and as a process that is killed."""

import json
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest
from coordinator.harness import SPEC
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hubring_common import rpc
from hubring_common.attend import Attendance
from hubring_common.errors import KINDS, UsageError
from hubring_common.messages import (
    Heartbeat,
    Hello,
    Leave,
    ModelDeclaration,
    Role,
    RunState,
    Status,
    StatusRequest,
    WorkerProgress,
)
from hubring_common.timing import Timing
from hubring_coordinator import summary
from hubring_coordinator.process import CoordinatorSettings, StopRequests, serve
from hubring_coordinator.store import SqliteStore

TOKEN = "a-token"


class Served:
    """A coordinator in a thread."""

    def __init__(self, **settings) -> None:
        chosen = {"token": TOKEN, "timing": Timing(0.5), **settings}
        self.stops = StopRequests()
        self._where: SimpleQueue[str] = SimpleQueue()
        self._code: SimpleQueue[int] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(CoordinatorSettings(**chosen),))
        self._thread.start()
        self.address = self._where.get(timeout=5).split()[0]
        self.channel = rpc.open_channel(self.address)
        self.caller = rpc.Caller(self.channel, "Coordinator", TOKEN, "the coordinator")

    def _run(self, settings: CoordinatorSettings) -> None:
        self._code.put(serve(settings, self._where.put, self.stops))

    def status(self) -> Status:
        return self.caller.call("GetStatus", StatusRequest(), 5)

    def worker(self) -> Attendance:
        attendance = Attendance(
            self.channel,
            TOKEN,
            Timing(0.5),
            beat=lambda: Heartbeat(WorkerProgress()),
            orders=lambda message: None,
            lost=lambda error: None,
        )
        attendance.start(Hello(Role.WORKER))
        return attendance

    def end(self) -> int:
        self.channel.close()
        code = self._code.get(timeout=5)
        self._thread.join()
        return code


def test_a_stopped_run_exits_with_0_and_leaves_a_summary(tmp_path):
    served = Served(run="r1", run_dir=str(tmp_path / "runs" / "{run}"))
    served.stops.ask("SIGTERM")
    assert served.end() == 0
    found = json.loads((tmp_path / "runs" / "r1" / "summary.json").read_text())
    assert (found["run"], found["state"], found["why"]) == ("r1", "STOPPED", "SIGTERM")
    left = sorted(path.name for path in (tmp_path / "runs" / "r1").iterdir())
    assert left == ["report.html", "summary.json"]


def test_a_failed_run_exits_with_its_kinds_code(tmp_path):
    served = Served(run_dir=str(tmp_path))
    worker = served.worker()
    leave = Leave(worker.welcome.session, "Diverged", "fc.weight is NaN", "Traceback")
    served.caller.call("LeaveRun", leave, 5)
    worker.close()
    assert served.end() == KINDS["Diverged"].exit_code
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["kind"], found["who"], found["traceback"]) == (
        "Diverged",
        "worker-0",
        "Traceback",
    )


def test_the_second_stop_ends_at_once():
    served = Served()
    worker = served.worker()
    served.caller.call("DeclareModel", ModelDeclaration(worker.welcome.session, SPEC), 5)
    served.stops.ask("SIGINT")
    served.stops.ask("SIGINT")
    worker.close()
    assert served.end() == 0


def test_a_run_that_does_not_form_exits_with_10():
    served = Served(forming_timeout=0.2)
    assert served.end() == KINDS["TimedOut"].exit_code


def test_health_is_served_without_a_token():
    served = Served()
    stub = health_pb2_grpc.HealthStub(served.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    served.stops.ask("enough")
    served.end()


def test_plaintext_leaves_this_machine_only_by_name():
    with pytest.raises(UsageError, match="not encrypted") as caught:
        CoordinatorSettings(token=TOKEN, bind="0.0.0.0:0")
    assert "--plaintext" in caught.value.todo
    assert CoordinatorSettings(token=TOKEN, bind="0.0.0.0:0", plaintext=True).plaintext


@pytest.mark.parametrize(
    "wrong",
    [{"token": ""}, {"servers": 0}, {"mode": "ring"}, {"forming_timeout": 0}, {"bind": "here"}],
)
def test_settings_check_themselves(wrong):
    with pytest.raises(UsageError):
        CoordinatorSettings(**{"token": TOKEN, **wrong})


def test_an_address_in_use_is_named(tmp_path):
    served = Served()
    taken = CoordinatorSettings(token=TOKEN, bind=served.address, state_dir=str(tmp_path))
    with pytest.raises(UsageError, match="cannot listen"):
        serve(taken, lambda where: None)
    SqliteStore(tmp_path).close()
    served.stops.ask("enough")
    served.end()


def test_a_finished_run_is_archived_and_a_new_one_begins(tmp_path):
    for run in ("r1", "r2"):
        served = Served(run=run, state_dir=str(tmp_path))
        assert served.status().run == run
        session = served.worker()
        session.close()
        served.stops.ask("enough")
        served.end()
    with closing(SqliteStore(tmp_path)) as store:
        rows = {(row.kind, row.key): row.value for row in store.load()}
    assert rows["past_runs", "r1"]["state"] == "STOPPED"
    assert rows["counter", "sessions"] == 3, "sessions go on across runs"
    assert [key for kind, key in rows if kind == "member"] == ["2"]
    with pytest.raises(UsageError, match="run r1 is over"):
        serve(CoordinatorSettings(token=TOKEN, run="r1", state_dir=str(tmp_path)), print)


def test_a_generated_id_is_new_each_time(tmp_path):
    runs = []
    for _ in range(2):
        served = Served(state_dir=str(tmp_path))
        runs.append(served.status().run)
        served.stops.ask("enough")
        served.end()
    assert runs[0] != runs[1]


def killed_run(folder: Path) -> None:
    """A coordinator that has a worker and is killed."""
    script = (
        "from hubring_coordinator.process import CoordinatorSettings, serve\n"
        f"settings = CoordinatorSettings(token={TOKEN!r}, run='r1', state_dir={str(folder)!r})\n"
        "serve(settings, lambda where: print(where, flush=True))\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        address = child.stdout.readline().split()[0]
        with rpc.open_channel(address) as channel:
            attendance = Attendance(
                channel,
                TOKEN,
                Timing(),
                beat=Heartbeat,
                orders=lambda message: None,
                lost=lambda error: None,
            )
            attendance.start(Hello(Role.WORKER))
            child.send_signal(signal.SIGKILL)
            attendance.close()


def test_an_unfinished_run_goes_on_after_a_kill(tmp_path):
    killed_run(tmp_path)
    served = Served(state_dir=str(tmp_path))
    status = served.status()
    assert (status.run, status.state) == ("r1", RunState.FORMING)
    assert [member.name for member in status.members] == ["worker-0"]
    served.stops.ask("enough")
    assert served.end() == 0


def test_an_unfinished_run_keeps_its_settings(tmp_path):
    killed_run(tmp_path)
    for wrong in ({"servers": 2}, {"seed": 5}, {"run": "other"}):
        settings = CoordinatorSettings(**{"token": TOKEN, "state_dir": str(tmp_path), **wrong})
        with pytest.raises(UsageError, match="in the unfinished run r1"):
            serve(settings, lambda where: None)


def test_the_summary_has_no_number_that_json_lacks():
    shown = summary.as_json(Status("r", RunState.FAILED, "async", metrics={"x": float("nan")}))
    assert shown["metrics"] == {"x": None}
    assert shown["state"] == "FAILED"
    assert set(shown) == set(Status.__slots__)
    json.dumps(shown, allow_nan=False)


def test_a_summary_that_cannot_be_written_costs_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    served = Served(run_dir=str(tmp_path / "file" / "below"))
    served.stops.ask("enough")
    assert served.end() == 0


def test_torch_is_never_loaded():
    script = (
        "import sys\n"
        "from hubring_coordinator.process import CoordinatorSettings, StopRequests, serve\n"
        "stops = StopRequests()\n"
        "stops.ask('enough')\n"
        "code = serve(CoordinatorSettings(token='t'), lambda where: None, stops)\n"
        "print(code, sorted({'torch', 'numpy', 'plotly', 'tensorboard'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout == "0 []\n"
