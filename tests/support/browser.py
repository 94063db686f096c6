"""A real browser for the tests of pages: Debian's Chromium, driven by Playwright."""

import os
import shutil

HOW = "these tests need Chromium: `apt-get install chromium`, or set CHROMIUM to the program"


def chromium() -> str:
    """Return the path of the browser.

    Raises:
        RuntimeError: there is none; the message says how to get it.
    """
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        raise RuntimeError(HOW)
    return found
