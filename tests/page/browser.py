"""A headless Chromium, the one that the machine has, and what it saw."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
NEEDED = f"no Chromium is found ({', '.join(CHROMIUMS)}); apt-get install chromium brings one"
TIMEOUT = 30.0

needs_chromium = pytest.mark.skipif(EXECUTABLE is None, reason=NEEDED)


@contextmanager
def chromium() -> Iterator:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=EXECUTABLE, args=flags)
        yield browser
        browser.close()


class Seen:
    """A page and its complaints: errors of scripts, refusals by the policy, dialogs."""

    def __init__(self, browser, width=1280, scheme="light") -> None:
        size = {"width": width, "height": 900}
        self.page = browser.new_page(viewport=size, color_scheme=scheme)
        self.page.set_default_timeout(1000 * TIMEOUT)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("dialog", self._refuse)

    def _hear(self, message) -> None:
        if message.type in {"error", "warning"} and "ERR_" not in message.text:
            self.complaints.append(message.text)

    def _refuse(self, dialog) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, url: str) -> "Seen":
        """With a view that was drawn."""
        self.page.goto(url)
        self.until("page.view !== null")
        return self

    def until(self, condition: str) -> None:
        """Asked again and again from here: the page's policy forbids the driver to do so there."""
        deadline = time.monotonic() + TIMEOUT
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"not within {TIMEOUT:.0f} s: {condition}"
            self.page.wait_for_timeout(50)

    def text(self, where: str) -> str:
        return self.page.inner_text(where)

    def ask(self, script: str):
        return self.page.evaluate(script)


def row_says(table: str, member: str, word: str) -> str:
    """A condition: the member's row has the word in it."""
    rows = f"[...document.querySelectorAll('#{table} tbody tr')]"
    return (
        f"{rows}.some(r => r.textContent.includes('{member}') && r.textContent.includes('{word}'))"
    )
