"""A real browser with the network off, and a page with every kind of chart and table."""

from __future__ import annotations

import os

import pytest

from analysis.report import write_report
from tests.support.rows import synthetic_run

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"no browser at {CHROMIUM}: install Debian's chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return write_report([synthetic_run(str(tmp_path_factory.mktemp("run")))])


@pytest.fixture
def visit(browser):
    """Opens a page; whatever it asks the network for, says on the console or pops up ends in ``trouble``."""
    opened = []

    def open_page(path, width=1400, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(page)
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (page.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))

        def only_files(route):
            if route.request.url.startswith("file://"):
                return route.continue_()
            page.trouble.append(f"request: {route.request.url}")
            return route.abort()

        page.route("**/*", only_files)
        page.goto(f"file://{path}")
        page.wait_for_selector("body[data-charts=drawn]", timeout=30_000)
        return page

    yield open_page
    for page in opened:
        page.close()


MARKS = ".role-mark.mark-symbol path, .role-mark.mark-rect path"
