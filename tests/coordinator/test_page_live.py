"""What the ops port serves of a run, and the file that a run leaves."""

import json
import re
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
from coordinator.statuses import eventful, status, worker

from hubring_common.errors import Unreachable
from hubring_common.messages import RunState
from hubring_common.ops import OpsServer
from hubring_common.timing import Timing
from hubring_coordinator.page import assets
from hubring_coordinator.page.live import Live

IMAGE = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>'


@contextmanager
def served(ask, state_dir=""):
    live = Live(ask, Timing(10), "r1", state_dir)
    live.start()
    server = OpsServer("127.0.0.1:0", lambda: (True, ""), live.pages())
    try:
        yield live, f"http://127.0.0.1:{server.port}"
    finally:
        live.close()
        server.close()


def get(url):
    with urllib.request.urlopen(url, timeout=5) as reply:
        return reply.read().decode(), reply.headers


def ticking():
    """A run that is further at each look."""
    numbers = count(1)

    def ask():
        n = next(numbers)
        return status(seconds=float(n), members=(worker(0, steps=10 * n),))

    return ask


def first_events(url, wanted):
    found = []
    with urllib.request.urlopen(url, timeout=5) as reply:
        assert reply.headers["Content-Type"] == "text/event-stream"
        while len(found) < wanted:
            line = reply.readline().decode()
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
    return found


def test_the_page_and_its_files_run_no_script_but_theirs():
    with served(eventful) as (_, url):
        page, headers = get(f"{url}/")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy and "unsafe-eval" not in policy
        assert not re.search(r"\son\w+=|javascript:", page)
        for name in re.findall(r'(?:src|href)="(/[\w.]+)"', page):
            body, headers = get(url + name)
            assert body and headers["X-Content-Type-Options"] == "nosniff"
            assert "http" not in headers["Content-Type"]
        for name in assets.SCRIPTS:
            assert "innerHTML" not in assets.text(name) and "eval(" not in assets.text(name)


def test_nothing_comes_from_elsewhere():
    texts = [assets.text(name) for name in (*assets.SCRIPTS, "page.html", "page.css")]
    assert not [t for t in texts if re.search(r"https?://|@import|//cdn", t)]


def test_status_json_is_the_status_and_the_view():
    with served(eventful) as (_, url):
        found = json.loads(get(f"{url}/status.json")[0])
    assert found["state"] == "TRAINING" and len(found["epochs"]) == 29
    assert found["view"]["diagnosis"]["kind"] == "silent"
    assert found["view"]["history"]["rows"]


def test_each_event_continues_the_one_before():
    with served(ticking()) as (_, url):
        events = first_events(f"{url}/events", 3)
    rows = []
    for event in events:
        past = event["history"]
        assert past["from"] <= len(rows)
        rows[past["from"] :] = past["rows"]
    steps = [row[past["columns"].index("steps")] for row in rows]
    assert steps == sorted(set(steps)) and len(steps) >= 3


def test_the_history_outlives_the_process(tmp_path):
    ask = ticking()
    with served(ask, str(tmp_path)) as (_, url):
        first_events(f"{url}/events", 2)
    with served(ask, str(tmp_path)) as (_, url):
        rows = first_events(f"{url}/events", 1)[0]["history"]["rows"]
    assert [row[0] for row in rows][:2] == [1.0, 2.0]


def test_a_coordinator_that_does_not_answer_is_asked_again():
    answers = iter([Unreachable("not yet"), status(), status(seconds=61.0)])

    def ask():
        answer = next(answers, status(seconds=62.0))
        if isinstance(answer, Exception):
            raise answer
        return answer

    with served(ask) as (live, _):
        deadline = time.monotonic() + 5
        while live.latest() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_without_plotly_the_page_has_no_such_script(monkeypatch):
    monkeypatch.setattr(assets, "plotly", lambda: None)
    with served(eventful) as (live, url):
        assert "plotly" not in get(f"{url}/")[0]
        assert len(live.finish(eventful())) < 100_000


def test_the_saved_page_is_whole_and_what_members_said_stays_text():
    said = replace(eventful(word=IMAGE), state=RunState.FAILED, why=IMAGE, traceback=IMAGE)
    with served(lambda: said) as (live, _):
        page = live.finish(said)
    assert IMAGE not in page and "<img" not in page.split('id="saved"')[1].split("</script>")[0]
    data = re.search(r'id="saved">(.*?)</script>', page, re.DOTALL).group(1)
    assert json.loads(data)["traceback"] == IMAGE
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="[^d]', page.split("<body>")[0])
    hashes = re.findall(r"'sha256-[\w+/=]+'", page.split("</head>")[0])
    scripts = len(assets.SCRIPTS) + (assets.plotly() is not None)
    assert len(hashes) == scripts


@pytest.mark.skipif(assets.plotly() is None, reason="plotly is not installed")
def test_plotlys_script_is_served_from_its_wheel():
    with served(eventful) as (_, url):
        assert '<script src="/plotly.js">' in get(f"{url}/")[0]
        assert len(get(f"{url}/plotly.js")[0]) > 1_000_000


def test_the_last_event_says_how_the_run_ended():
    with (
        served(ticking()) as (live, url),
        urllib.request.urlopen(f"{url}/events", timeout=5) as all_,
    ):
        all_.readline()
        live.finish(status(state=RunState.FINISHED, seconds=900.0))
        live.close()
        data = [line[6:] for line in all_.read().decode().splitlines() if line.startswith("data: ")]
    assert json.loads(data[-1])["is_over"]
