"""A campaign's page: one HTML file, or a ZIP file of pages where it has more cells than one page can show.

Only the cells of one page are in memory at a time, in their short form; finished pages wait in a temporary folder,
because the first page of the file, which counts all cells, can only be written last.
"""

import bisect
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from unerase.v1.audits_pb2 import ReportContent
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell
from unerase.v1.comparisons_pb2 import CellComparison
from unerase.v1.gates_pb2 import GateFinding
from unerase_backend.report.campaign.joined import outcomes_of, with_comparisons
from unerase_backend.report.campaign.overview import Overview
from unerase_backend.report.campaign.page import Part, render_index, render_page
from unerase_backend.report.campaign.rows import Row, Titles, row_of
from unerase_backend.verdict.decision import Tolerances

MAX_CELLS = 2_000
"""Cells of one page."""

HTML, ZIP = "text/html; charset=utf-8", "application/zip"
INDEX = "index.html"

_Page = tuple[list[Row], Titles]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a ZIP file can hold; the same for all, so that equal pages give equal files."""


def write_html(
    file: BinaryIO,
    head: CampaignReport,
    cells: Iterable[CampaignReportCell],
    comparisons: Iterable[CellComparison] = (),
    *,
    content_of: Callable[[CampaignReportCell], ReportContent | None] = lambda cell: None,
    read_picture: Callable[[str], bytes | None] = lambda digest: None,
) -> str:
    """Write the page and return its media type.

    Up to MAX_CELLS cells are one HTML file. More are a ZIP file, whose first member is `index.html`. Equal arguments
    give equal bytes within one version of Pillow and zlib.

    Args:
        file: gets the bytes; it need not be seekable.
        head: the report without its cells.
        cells: in order of their index.
        comparisons: those of the cells with the compared campaign, in order of the cells; some may be absent.
        content_of: returns the content of a cell's audit report, or None if there is none. Asked once for each cell.
        read_picture: returns the PNG of a digest, or None if it is no longer kept.

    Raises:
        ValueError: a cell or a comparison is out of order.
    """
    overview = Overview(href=lambda index: f"#cell-{index}")
    pages = _pages(head, cells, comparisons, content_of, overview)
    first: _Page = next(pages, ([], Titles()))
    second = next(pages, None)
    if second is None:
        file.write(render_page(head, *first, overview, read_picture).encode())
        return HTML
    starts: list[int] = []
    overview.href = lambda index: f"{_name(bisect.bisect_right(starts, index))}#cell-{index}"
    with TemporaryDirectory() as folder:
        for number, (rows, titles), last in _numbered(chain([first, second], pages)):
            starts.append(rows[0].index)
            text = render_page(head, rows, titles, overview, read_picture, Part(number, last, _name))
            Path(folder, _name(number)).write_text(text, encoding="utf-8")
        Path(folder, INDEX).write_text(render_index(head, overview, starts, _name), encoding="utf-8")
        _zip(file, [Path(folder, name) for name in (INDEX, *map(_name, range(1, len(starts) + 1)))])
    return ZIP


def _pages(
    head: CampaignReport,
    cells: Iterable[CampaignReportCell],
    comparisons: Iterable[CellComparison],
    content_of: Callable[[CampaignReportCell], ReportContent | None],
    overview: Overview,
) -> Iterator[_Page]:
    """Yield the cells of each page and the evaluations that they have; every cell is counted in the overview."""
    tolerances = Tolerances.of(head.content.spec.template)
    gate_of = outcomes_of(head.content)
    findings: dict[int, list[GateFinding]] = {}
    for finding in head.content.gate_result.findings:
        findings.setdefault(finding.cell, []).append(finding)
    rows, titles = list[Row](), Titles()
    for cell, comparison in with_comparisons(cells, comparisons):
        if len(rows) == MAX_CELLS:
            yield rows, titles
            rows, titles = [], Titles()
        row = row_of(
            cell,
            audit=head.audits[cell.index] if cell.index < len(head.audits) else "",
            gate=gate_of(cell),
            findings=findings.get(cell.index, ()),
            comparison=comparison,
            content=content_of(cell),
            tolerances=tolerances,
            titles=titles,
        )
        overview.add(row)
        rows.append(row)
    if rows:
        yield rows, titles


def _numbered(pages: Iterator[_Page]) -> Iterator[tuple[int, _Page, bool]]:
    """Yield each page with its number, and whether it is the last."""
    page = next(pages)
    for number in count(1):
        after = next(pages, None)
        yield number, page, after is None
        if after is None:
            return
        page = after


def _name(number: int) -> str:
    return f"cells-{number:04d}.html"


def _zip(file: BinaryIO, members: Iterable[Path]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name, _EPOCH)
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            with member.open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target)
