"""The printed page: no page but the last has an empty half, and each says which audit it belongs to."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.browser import chromium, poppler
from support.report_by_hand import PICTURES, whole
from unerase_backend import report

pytestmark = pytest.mark.pages


def test_printed_pages_are_filled_and_named(tmp_path: Path) -> None:
    page, printed = tmp_path / "audit.html", tmp_path / "audit.pdf"
    page.write_text(report.render_html(whole(), PICTURES.__getitem__))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={tmp_path}/b"]
    subprocess.run(
        [chromium(), *options, f"--print-to-pdf={printed}", page.as_uri()], check=True, capture_output=True, timeout=60
    )
    subprocess.run(
        [poppler("pdftoppm"), "-r", "30", "-gray", "-png", printed, tmp_path / "page"], check=True, timeout=60
    )
    filled = [_filled(picture) for picture in sorted(tmp_path.glob("page-*.png"))]
    assert len(filled) > 3
    assert all(share > 0.65 for share in filled[:-1]), filled
    text = subprocess.run(
        [poppler("pdftotext"), printed, "-"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    pages = text.split("\f")[:-1]
    for at, said in enumerate(pages, 1):
        assert "audit a1" in said
        assert f"page {at} of {len(pages)}" in said


def _filled(picture: Path) -> float:
    """Return how far down a page something is printed, its head and foot left out."""
    with Image.open(picture) as image:
        shades = np.array(image.convert("L"))
    body = shades[int(0.05 * len(shades)) : int(0.94 * len(shades))]
    return float(np.flatnonzero((body < 200).any(axis=1)).max() / len(body))
