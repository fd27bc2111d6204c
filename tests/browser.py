"""Pages in Chromium, where Debian or the user has put it."""

import shutil
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
TIMEOUT = 240_000  # of a wait, in ms


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
