"""The event stream: everyone gets what they miss, nobody waits for anybody, all ends."""

import itertools
import socket
import threading
import time
from contextlib import closing

import pytest

from hubring_common.errors import Busy
from hubring_common.ops import Answer, OpsServer
from hubring_coordinator.page.feed import Feed

READY = (True, "")


def served(feed):
    return OpsServer(
        "127.0.0.1:0",
        lambda: READY,
        {"/events": lambda: Answer(feed.listen(), "text/event-stream")},
    )


def listen(server):
    client = socket.create_connection(("127.0.0.1", server.port), 5)
    client.sendall(b"GET /events HTTP/1.0\r\n\r\n")
    return client


def heard_until(client, word):
    data = b""
    while word not in data:
        more = client.recv(65536)
        assert more, f"the stream ended after {data!r}"
        data += more
    return data


def eventually(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_newcomer_gets_the_whole_then_each_change():
    feed = Feed(lambda: b"whole;")
    with closing(feed.listen()) as listener:
        pieces = iter(listener)
        assert next(pieces).endswith(b"whole;")
        feed.publish(b"one;")
        assert next(pieces) == b"one;"
        feed.publish(b"two;")
        assert next(pieces) == b"two;"


def test_who_missed_one_gets_the_whole_again():
    feed = Feed(lambda: b"whole;")
    with closing(feed.listen()) as listener:
        pieces = iter(listener)
        next(pieces)
        feed.publish(b"one;")
        feed.publish(b"two;")
        assert next(pieces) == b"whole;"
        feed.publish(b"")
        assert next(pieces) == b"whole;", "a change that nobody made is no change"


def test_a_place_is_free_again_once_a_listener_has_gone():
    feed = Feed(lambda: b"", listeners=2)
    first, second = feed.listen(), feed.listen()
    assert feed.listeners == 2
    with pytest.raises(Busy, match="2 pages are open"):
        feed.listen()
    first.close()
    third = feed.listen()
    second.close()
    third.close()
    assert feed.listeners == 0


def test_too_many_are_told_so_and_one_that_hung_up_makes_room():
    feed = Feed(lambda: b"whole;", listeners=1)
    server = served(feed)
    with listen(server) as first:
        heard_until(first, b"whole;")
        with listen(server) as second:
            assert b"503" in heard_until(second, b"\r\n\r\n").splitlines()[0]
    eventually(lambda: feed.publish(b"x") or feed.listeners == 0)
    with listen(server) as third:
        heard_until(third, b"whole;")
        feed.close()
        server.close()


def test_one_that_hangs_holds_up_nobody():
    """Its buffers are full: its own thread alone waits, and is dropped in the end."""
    feed = Feed(lambda: b"whole;")
    server = served(feed)
    with listen(server) as hanging, listen(server) as reading:
        heard_until(hanging, b"whole;")
        heard_until(reading, b"whole;")
        big = b"x" * 2_000_000
        for number in range(8):
            began = time.monotonic()
            feed.publish(big + b"%d;" % number)
            assert time.monotonic() - began < 1
            heard_until(reading, b"x%d;" % number)
        feed.close()
        server.close()


def test_closing_ends_every_stream():
    feed = Feed(lambda: b"whole;")
    server = served(feed)
    clients = [listen(server) for _ in range(3)]
    for client in clients:
        heard_until(client, b"whole;")
    feed.close()
    for client in clients:
        while client.recv(65536):
            pass
        client.close()
    server.close()
    eventually(lambda: not [t for t in threading.enumerate() if "request" in t.name])


def test_a_silent_feed_still_finds_out_who_has_gone(monkeypatch):
    monkeypatch.setattr("hubring_coordinator.page.feed.IDLE", 0.01)
    feed = Feed(lambda: b"whole;")
    with closing(feed.listen()) as listener:
        assert list(itertools.islice(listener, 3))[1:] == [b":\n\n", b":\n\n"]
