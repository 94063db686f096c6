"""A browser, and a campaign's page in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.browser import chromium
from support.campaign_by_hand import Made, campaign, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # Only the tests of pages need it.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, which containers often are, Chromium has no sandbox.
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def made() -> Made:
    """Twelve models and three concepts."""
    return campaign([f"release/model-{at}" for at in range(12)], ["hourglass", "heart", "arrow"], evaluations=5)


@pytest.fixture(scope="session")
def file(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("campaign") / "campaign.html"
    write_page(path, made)
    return path


@pytest.fixture
def visit(browser: Browser, file: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page; afterwards it must not have asked for anything else, nor have complained."""
    contexts, asked, complaints = [], [], []

    def opened(anchor: str = "", at: Path = file, width: int = 1280, height: int = 900, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("console", lambda said: complaints.append(said.text))
        page.goto(at.as_uri() + anchor)
        return page

    yield opened
    for context in contexts:
        context.close()
    folder = file.parent.as_uri()
    assert [url for url in asked if not url.startswith((folder, "data:"))] == []
    assert complaints == []
