"""The page as a browser shows it: widths, schemes, hostile words, with and without charts."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
from coordinator.statuses import eventful, status
from page.browser import Seen, chromium, needs_chromium

from hubring_common.messages import RunState
from hubring_common.ops import OpsServer
from hubring_common.timing import Timing
from hubring_coordinator.page import assets
from hubring_coordinator.page.feed import LISTENERS
from hubring_coordinator.page.live import Live

pytestmark = [pytest.mark.browser, needs_chromium]

HOSTILE = "<img src=x onerror=\"document.title='gotcha';alert(1)\">"
LONG = "worker" * 60
EMPTY = status(
    state=RunState.FORMING,
    members=(),
    shards=(),
    epochs=(),
    waiting_for="waiting 3 s for 2 of 2 servers (none is here)",
)
FAILED = replace(
    eventful(), state=RunState.FAILED, why="ValueError: bad luck", who="worker-1", traceback="Trace"
)
CASES = {
    "eventful": eventful(),
    "empty": EMPTY,
    "failed": FAILED,
    "hostile": eventful(word=HOSTILE),
    "long": eventful(word=LONG),
}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@contextmanager
def served(given):
    live = Live(lambda: given, Timing(10), "r1", "")
    live.start()
    server = OpsServer("127.0.0.1:0", lambda: (True, ""), live.pages())
    try:
        yield live, f"http://127.0.0.1:{server.port}/"
    finally:
        live.close()
        server.close()


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_wider_than_the_window_and_nothing_complains(browser, case):
    with served(CASES[case]) as (_, url):
        seen = Seen(browser, 400).open(url)
        for width in (400, 1280, 700):
            seen.page.set_viewport_size({"width": width, "height": 900})
            assert seen.ask("document.documentElement.scrollWidth") == width
        assert seen.complaints == []
        seen.page.close()


def test_the_two_schemes_differ_and_the_charts_follow(browser):
    grounds = {}
    with served(eventful()) as (_, url):
        seen = Seen(browser).open(url)
        for scheme in ("light", "dark"):
            seen.page.emulate_media(color_scheme=scheme)
            shade = "getComputedStyle(document.body).backgroundColor"
            ink = "byId('loss-chart').layout?.font.color"
            grounds[scheme] = (seen.ask(shade), seen.ask(ink))
        seen.page.close()
    assert all(light != dark for light, dark in zip(*grounds.values(), strict=True))


def test_what_members_say_stays_text(browser):
    with served(eventful(word=HOSTILE)) as (_, url):
        seen = Seen(browser).open(url)
        assert seen.ask("document.querySelectorAll('main img').length") == 0
        assert HOSTILE in seen.text("#members") and HOSTILE in seen.text("#events")
        assert HOSTILE in seen.text("#evaluations") and HOSTILE in seen.text("#goals")
        assert "gotcha" not in seen.page.title()
        seen.ask("Plotly.Fx.hover('loss-chart', [{curveNumber: 2, pointNumber: 1}])")
        assert seen.ask("document.querySelectorAll('.hoverlayer a, .hoverlayer image').length") == 0
        assert "onerror" in seen.ask("document.querySelector('.hoverlayer').textContent")
        assert seen.complaints == []
        seen.page.close()


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser):
    with served(eventful()) as (_, url):
        seen = Seen(browser).open(url)
        seen.ask("document.body.insertAdjacentHTML('beforeend', `" + HOSTILE + "`)")
        seen.page.wait_for_timeout(300)
        assert "gotcha" not in seen.page.title()
        assert any("Content Security Policy" in words for words in seen.complaints)
        seen.page.close()


def test_a_failed_run_shows_who_and_why_and_the_traceback(browser):
    with served(FAILED) as (_, url):
        seen = Seen(browser).open(url)
        assert "Failed after 25 min 0 s by worker-1: ValueError: bad luck" in seen.text(
            "#diagnosis"
        )
        assert seen.text("#trace-text") == "Trace"
        assert seen.text("#state") == "failed"
        seen.page.close()


def test_an_empty_run_says_what_it_waits_for(browser):
    with served(EMPTY) as (_, url):
        seen = Seen(browser).open(url)
        assert seen.text("#diagnosis") == "Forming: waiting 3 s for 2 of 2 servers (none is here)."
        assert seen.text("#members") == "No member has come yet."
        assert not seen.page.is_visible("#charts")
        seen.page.close()


def test_the_axis_is_the_readers_choice(browser):
    with served(eventful()) as (_, url):
        seen = Seen(browser).open(url)
        title = "byId('loss-chart').layout.xaxis.title.text"
        assert seen.ask(title) == "minutes"
        seen.page.get_by_role("button", name="steps").click()
        assert seen.ask(title) == "steps"
        marked = seen.ask("byId('loss-chart').data[2].text.length")
        assert marked == 6, "two joins before, a death, a join, two evaluations"
        seen.page.close()


def test_without_plotly_the_same_numbers_stand_in_tables(browser, monkeypatch):
    monkeypatch.setattr(assets, "plotly", lambda: None)
    with served(eventful()) as (_, url):
        seen = Seen(browser).open(url)
        assert not seen.page.is_visible("#charts")
        assert re.search(r"0:25:00\s+12,020\s+0\.35\s+1,912", seen.text("#history"))
        assert re.search(r"2-3\s+5,400\s+47 %", seen.text("#staleness"))
        assert seen.complaints == []
        seen.page.close()


@pytest.mark.parametrize("with_plotly", [True, False])
def test_the_saved_report_needs_no_coordinator(browser, tmp_path, monkeypatch, with_plotly):
    if not with_plotly:
        monkeypatch.setattr(assets, "plotly", lambda: None)
    over = replace(eventful(word=HOSTILE), state=RunState.FINISHED)
    with served(over) as (live, _):
        (tmp_path / "report.html").write_text(live.finish(over))
    seen = Seen(browser, 400).open(f"file://{tmp_path}/report.html")
    assert seen.text("#state") == "finished"
    assert seen.text("#connection") == "saved at the run's end"
    assert seen.page.is_visible("#charts") is with_plotly
    assert seen.ask("document.querySelectorAll('main img').length") == 0
    assert seen.ask("document.documentElement.scrollWidth") == 400
    assert "gotcha" not in seen.page.title() and seen.complaints == []
    seen.page.close()


def test_headings_tables_and_names_for_those_who_listen(browser):
    with served(eventful()) as (_, url):
        seen = Seen(browser).open(url)
        assert seen.ask("document.querySelectorAll('h1').length") == 1
        unscoped = "document.querySelectorAll('th:not([scope])').length"
        assert seen.ask(unscoped) == 0
        nameless = "[...document.querySelectorAll('[role=img],section')].filter(e => !e.hidden && "
        nameless += "!e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')).length"
        assert seen.ask(nameless) == 0
        assert seen.ask("byId('over-time').getAttribute('aria-pressed')") == "true"
        seen.page.close()


def test_one_page_too_many_says_so_and_comes_in_later(browser):
    with served(eventful()) as (live, url):
        listeners = [live._feed.listen() for _ in range(LISTENERS)]
        seen = Seen(browser)
        seen.page.goto(url)
        seen.until("byId('connection').textContent.startsWith('too many pages')")
        for listener in listeners:
            listener.close()
        seen.until("byId('connection').textContent === 'live'")
        seen.page.close()
