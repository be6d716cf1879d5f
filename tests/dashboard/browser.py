"""A real Chromium, driven by Playwright; what it asks for and complains about is kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        message = "there is no chromium; apt-get install --no-install-recommends chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page, the addresses that it asked for, and what its console complained about."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def wait(self, condition: str, seconds: float = 15) -> None:
        """Until the expression is true in the page, whose policy refuses Playwright's own way of asking again."""
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.01)

    def still(self) -> None:
        """Waits until the page has its answer."""
        self.wait("!document.hidden && document.querySelector('main').childElementCount > 0"
                  " && !('asking' in document.querySelector('main').dataset)")  # fmt: skip

    def settled(self, *, pause: bool = True) -> None:
        """Waits until every panel shows something, then holds the page."""
        self.wait(
            "document.querySelectorAll('.panel').length > 0 && [...document.querySelectorAll('.panel[data-panel]')]"
            ".every((panel) => panel.dataset.state)")  # fmt: skip
        live = self.page.get_by_role("button", name="Live", exact=True)
        if pause and live.count():
            live.click()
        self.still()

    def panel(self, title: str) -> Any:
        return self.page.locator(f'section.panel[aria-label="{title}"]')


@contextmanager
def watched(browser: Browser, url: str, *, width: int = 1440, height: int = 900, scheme: str = "light",
            quiet: bool = True) -> Iterator[Watched]:  # fmt: skip
    """A page of its own. With ``quiet`` it must have complained of nothing and asked nobody else."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(15_000)
    made = Watched(page)
    page.on("request", lambda request: made.asked.append(request.url))
    page.on("console", lambda told: made.complaints.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    try:
        yield made
        assert made.asked
        assert [one for one in made.asked if not one.startswith(url + "/")] == []
        assert not quiet or made.complaints == []
    finally:
        context.close()
