"""Pages in Chromium, where Debian or the user has put it, and what skips a test without it."""

import importlib.util
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
TIMEOUT = 240_000  # of a wait, in ms


def needs(*modules, chromium=False):
    """Skip a test where a module of the extras `browser` and `docs`, or Chromium, is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    missing += ["chromium"] if chromium and CHROMIUM is None else []
    return pytest.mark.skipif(
        bool(missing), reason=f"install {missing}: extras `browser` and `docs`, apt"
    )


@contextmanager
def browsing(url):
    """Open an address in Chromium; give the page, and what it asked for elsewhere."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, elsewhere = browser.new_page(viewport={"width": 1280, "height": 1000}), []
        page.set_default_timeout(TIMEOUT)
        known = (url, "data:", "blob:")
        page.on("request", lambda r: r.url.startswith(known) or elsewhere.append(r.url))
        page.goto(url)
        yield page, elsewhere
        browser.close()
