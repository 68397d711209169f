"""Opening built pages in headless Chromium, from the file system, with the network cut off."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--disable-extensions",
]  # fmt: skip


def browser_path() -> str | None:
    """Where Chromium is: FLOWLIB_BROWSER, or the first of the usual names on the path."""
    given = os.environ.get("FLOWLIB_BROWSER")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser(executable: str) -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        try:
            yield running
        finally:
            running.close()


@dataclass
class Report:
    """What happened while a page was open."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def opened(running: Any, path: Path, query: str = "") -> Iterator[tuple[Any, Report]]:
    """A page, loaded from the file system and typeset, with a report of errors and of requests that left the disk."""
    report = Report()
    context = running.new_context(viewport={"width": 1300, "height": 900}, offline=True)
    page = context.new_page()
    page.on("console", lambda message: report.console.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: report.console.append(str(error)))
    page.on(
        "request",
        lambda request: report.requests.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    try:
        page.goto(path.as_uri() + query, wait_until="load")
        page.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise !== undefined")
        page.evaluate("async () => { if (window.MathJax && MathJax.startup) await MathJax.startup.promise; }")
        yield page, report
    finally:
        context.close()
