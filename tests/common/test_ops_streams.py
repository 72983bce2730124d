"""The ops port's pages and streams: errors as words, and nobody holds a thread for ever."""

import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Gauge

from hubring_common import ops
from hubring_common.errors import Busy
from hubring_common.ops import Answer, OpsServer


class Numbers:
    """A stream without an end, that remembers whether it was closed."""

    def __init__(self):
        self.is_closed = threading.Event()

    def __iter__(self):
        while not self.is_closed.is_set():
            yield b"x" * 65536

    def close(self):
        self.is_closed.set()


def served(pages, metrics=None):
    return OpsServer("127.0.0.1:0", lambda: (True, ""), pages, metrics)


def get(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def busy():
    raise Busy("32 pages are open already", todo="close one")


def test_an_error_is_told_in_its_own_words():
    server = served({"/busy": busy})
    code, words = get(server, "/busy?now")
    assert code == 503 and "32 pages are open already" in words
    server.close()


def test_metrics_of_the_run_stand_beside_those_of_the_process():
    registry = CollectorRegistry()
    Gauge("hubring_test", "A test.", registry=registry).set(7)
    server = served({}, registry)
    text = get(server, "/metrics")[1]
    assert "hubring_test 7.0" in text and "python_info" in text
    server.close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(ops, "PATIENCE", 0.2)


def test_a_client_that_does_not_read_is_dropped_and_its_stream_closed(impatient):
    numbers = Numbers()
    server = served({"/events": lambda: Answer(numbers, "text/event-stream")})
    with socket.create_connection(("127.0.0.1", server.port), 5) as client:
        client.sendall(b"GET /events HTTP/1.0\r\n\r\n")
        assert numbers.is_closed.wait(5), "its thread still waits"
    server.close()


def test_a_client_that_never_asks_is_dropped(impatient):
    server = served({})
    with socket.create_connection(("127.0.0.1", server.port), 5) as client:
        client.sendall(b"GET /hea")
        with suppress(ConnectionResetError):
            assert client.recv(10) == b""
    deadline = time.monotonic() + 5
    while [t for t in threading.enumerate() if "request" in t.name]:
        assert time.monotonic() < deadline, "its thread still waits"
        time.sleep(0.01)
    server.close()
