"""What the tests of pages need of the machine: Debian's Chromium and the programs of poppler-utils."""

import os
import shutil


def chromium() -> str:
    """Return the path of the browser.

    Raises:
        RuntimeError: there is none; the message says how to get it.
    """
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        raise RuntimeError("this test needs Chromium: `apt-get install chromium`, or set CHROMIUM to the program")
    return found


def poppler(program: str) -> str:
    """Return the path of a program that reads PDF files.

    Raises:
        RuntimeError: there is none; the message says how to get it.
    """
    found = shutil.which(program)
    if not found:
        raise RuntimeError(f"this test needs {program}: `apt-get install poppler-utils`")
    return found
