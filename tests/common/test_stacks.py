"""This process's stacks as text: whose, in which order, how much of them."""

import sys
import threading

import pytest

from hubring_common.bounded import cut
from hubring_common.stacks import dump


def waits_in_here(started, release):
    started.set()
    release.wait(10)


def test_every_thread_by_name_with_its_frames():
    started, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=waits_in_here, args=(started, release), name="the-waiter")
    thread.start()
    started.wait(10)
    try:
        text = dump()
    finally:
        release.set()
        thread.join()
    waiter = next(p for p in text.split("\n\n") if p.startswith("thread the-waiter\n"))
    assert "in waits_in_here" in waiter and "release.wait(10)" in waiter
    assert "test_every_thread_by_name" not in waiter
    assert text.startswith("thread MainThread\n")


def test_from_another_thread_the_main_one_comes_first_and_it_is_left_out():
    texts = []
    thread = threading.Thread(target=lambda: texts.append(dump()), name="asks")
    thread.start()
    thread.join()
    titles = [line for line in texts[0].splitlines() if line.startswith("thread ")]
    assert titles[0] == "thread MainThread" and "thread asks" not in titles


def test_a_deep_recursion_stays_small():
    def deep(levels):
        return deep(levels - 1) if levels else dump()

    main = deep(sys.getrecursionlimit() // 2).split("\n\n")[0]
    assert "more times]" in main and len(main) < 15_000


@pytest.mark.parametrize(("text", "limit"), [("é" * 1000, 1001), ("a" * 100, 99)])
def test_what_is_cut_says_so(text, limit):
    short = cut(text, limit)
    assert len(short.encode()) <= limit
    assert short.endswith(f"[cut: {limit} of {len(text.encode())} bytes are shown]\n")


def test_what_fits_is_whole():
    assert cut("é" * 100, 200) == "é" * 100
