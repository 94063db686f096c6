"""The campaign's page in a real browser, as its readers use it: by mouse, by keyboard, on a phone, in print."""

from __future__ import annotations

import io
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.browser import poppler
from support.campaign_by_hand import Made, campaign, write_page
from support.report_by_hand import HOSTILE
from unerase.v1.campaigns_pb2 import CampaignReportCell
from unerase.v1.verdicts_pb2 import Conclusion, Outcome
from unerase_backend.report.campaign import pages
from unerase_backend.report.formatting import p_value, points, span

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.pages

Visit = Callable[..., "Page"]

TIMES = "\N{MULTIPLICATION SIGN}"
LONG = "organisation/" + "a-very-long-name-of-a-model" * 4


def shown(page: Page) -> list[int]:
    """The cells of the table, in its order."""
    return page.eval_on_selector_all(
        "#all-cells tbody tr:not([hidden])", "rows => rows.map(row => Number(row.dataset.cell))"
    )


def head(page: Page, title: str):
    return page.locator("#all-cells thead th", has_text=re.compile(rf"^{title}"))


def word(cell: CampaignReportCell) -> str:
    if not cell.HasField("verdict"):
        return "failed"
    return Conclusion.Name(cell.verdict.conclusion).removeprefix("CONCLUSION_").lower().replace("_", " ")


def test_the_table_is_sorted_by_any_column_and_says_so(visit: Visit, made: Made) -> None:
    page = visit()
    severity = ["not erased", "avoided", "failed", "incomplete", "uninformative", "inconclusive", "removed"]
    worst_first = sorted(made.cells, key=lambda cell: severity.index(word(cell)))
    assert shown(page) == [cell.index for cell in worst_first]
    assert head(page, "Conclusion").get_attribute("aria-sort") == "ascending"
    subject = head(page, "Subject")
    subject.get_by_role("button").click()
    # Numbers within names count as numbers, and equal rows keep their order.
    by_name = sorted(worst_first, key=lambda cell: int(cell.subject.rpartition("-")[2]))
    assert shown(page) == [cell.index for cell in by_name]
    assert subject.get_attribute("aria-sort") == "ascending"
    assert head(page, "Conclusion").get_attribute("aria-sort") is None
    subject.get_by_role("button").press("Enter")
    assert subject.get_attribute("aria-sort") == "descending"
    assert shown(page)[0] // 3 == 11
    destruction = head(page, "Destruction")
    destruction.get_by_role("button").press("Space")
    figures = {cell.index: cell.verdict.likelihood.destruction.value for cell in made.cells[:-1]}
    assert [figures[at] for at in shown(page)[1:]] == sorted(figures.values())


def test_heat_maps_are_sorted_too(visit: Visit) -> None:
    page = visit()
    rows = "#subjects-evaluations tbody tr"
    column = page.locator("#subjects-evaluations thead th").nth(2)
    column.get_by_role("button").click()
    order = page.eval_on_selector_all(rows, "rows => rows.map(row => Number(row.cells[2].dataset.v))")
    assert order == sorted(order)
    assert len(set(order)) > 3
    assert column.get_attribute("aria-sort") == "ascending"


def test_filters_leave_the_cells_that_fit(visit: Visit, made: Made) -> None:
    from playwright.sync_api import expect

    page = visit()
    output = page.locator("#shown")
    assert output.inner_text() == "36 of 36 cells"
    page.get_by_label("Search", exact=True).fill("model-1 heart")
    expected = [cell.index for cell in made.cells if "model-1" in cell.subject and cell.concept == "heart"]
    assert sorted(shown(page)) == expected
    assert output.inner_text() == f"{len(expected)} of 36 cells"
    page.get_by_role("button", name="Show all").click()
    # A browser empties the form only after it has told the page, which filters then.
    expect(output).to_have_text("36 of 36 cells")
    page.get_by_label("Conclusion", exact=True).select_option("avoided")
    assert sorted(shown(page)) == [cell.index for cell in made.cells if word(cell) == "avoided"]
    page.get_by_label("Gate", exact=True).select_option("passes")
    assert shown(page) == []
    assert page.locator("#subjects-concepts tbody tr:visible").count() == 0
    page.get_by_label("Conclusion", exact=True).select_option("")
    assert sorted(shown(page)) == [cell.index for cell in made.cells if word(cell) == "removed"]
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Change", exact=True).select_option("worse")
    assert shown(page) == [0]


def test_a_concept_narrows_both_heat_maps_and_the_planes(visit: Visit, made: Made) -> None:
    page = visit()
    page.get_by_label("Concept", exact=True).select_option("heart")
    assert page.locator("#subjects-concepts thead th:visible").all_inner_texts()[1:] == ["heart"]
    assert page.locator("figure[data-concept]:visible").count() == 1
    for subject in {cell.subject for cell in made.cells}:
        row = page.locator(f'#subjects-evaluations tr[data-row="{subject}"]')
        (cell,) = [cell for cell in made.cells if (cell.subject, cell.concept) == (subject, "heart")]
        texts = [text.split()[-1] for text in row.locator("td").all_inner_texts()]
        assert texts == [points(result.excess.value) for result in cell.verdict.evaluations]
        assert row.locator("td a").first.get_attribute("href") == f"#cell-{cell.index}"


def test_a_filter_that_is_lifted_leaves_the_page_as_it_was(visit: Visit) -> None:
    page = visit()
    before = page.locator("#subjects-evaluations tbody").inner_text()
    page.get_by_label("Concept", exact=True).select_option("heart")
    assert page.locator("#subjects-evaluations tbody").inner_text() != before
    page.get_by_label("Concept", exact=True).select_option("")
    assert page.locator("#subjects-evaluations tbody").inner_text() == before


def test_a_cell_opens_its_evidence(visit: Visit, made: Made) -> None:
    from playwright.sync_api import expect

    page = visit()
    link = page.locator('#subjects-concepts a[href="#cell-3"]')
    link.click()
    dialog = page.get_by_role("dialog")
    verdict = made.cells[3].verdict
    assert dialog.get_by_role("heading", level=2).inner_text() == f"release/model-1 {TIMES} hourglass"
    text = dialog.inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert verdict.summary in text
    assert verdict.statement.replace("1.5e-06", f"1.5 {TIMES} 10⁻⁶") in text
    assert "unerase report audit3 --html audit.html" in text
    assert page.url.endswith("#cell-3")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    # A browser tells the page later that a dialog was closed.
    expect(page).to_have_url(re.compile(r"^[^#]*$"))
    # The reader is where they were.
    assert link.evaluate("link => link === document.activeElement")


def test_the_evidence_has_the_figures_of_every_evaluation(visit: Visit, made: Made) -> None:
    """As the audit's own page writes them."""
    page = visit("#cell-1")
    rows = page.locator("#evidence table.evaluations tbody tr")
    results = made.cells[1].verdict.evaluations
    assert rows.count() == len(results)
    for at, result in enumerate(results):
        text = re.sub(r"\s+", " ", rows.nth(at).inner_text())
        assert result.title in text
        assert Outcome.Name(result.outcome).removeprefix("OUTCOME_").lower().replace("_", " ") in text
        for rate in (result.subject, result.reference, result.control):
            assert f"{rate.hits} of {rate.cases} ({span(rate.wilson)} %)" in text
        assert f"{points(result.excess.value)} ({span(result.excess.bounds)})" in text
        assert f"p {p_value(result.excess.p_holm)} after Holm" in text
        drawn = rows.nth(at).locator("svg.lane")
        assert drawn.count() == 4
        middle = drawn.first.locator("circle").get_attribute("cx")
        assert float(middle) == pytest.approx(7 + 154 * result.subject.hits / 24, abs=0.01)


def test_a_failed_cell_says_why(visit: Visit, made: Made) -> None:
    page = visit(f"#cell-{len(made.cells) - 1}")
    text = page.get_by_role("dialog").inner_text()
    assert "MODEL_UNREADABLE" in text
    assert f"unet/{HOSTILE}.safetensors is cut off after" in text
    assert "undecided" in text


def test_evidence_goes_on_to_the_next_cell_that_is_shown(visit: Visit) -> None:
    page = visit()
    page.get_by_label("Conclusion", exact=True).select_option("avoided")
    order = shown(page)
    page.locator("#all-cells tbody tr:not([hidden]) a").first.click()
    seen = []
    while True:
        seen.append(int(page.url.rpartition("-")[2]))
        following = page.get_by_role("button", name="Next")
        if following.is_disabled():
            break
        following.click()
    assert seen == order
    page.get_by_role("button", name="Previous").click()
    assert page.url.endswith(f"#cell-{order[-2]}")
    page.get_by_role("button", name="Close").click()
    assert not page.get_by_role("dialog").is_visible()


def test_pictures_of_a_sensitive_concept_are_blurred_until_asked_for(visit: Visit) -> None:
    page = visit("#cell-0")
    picture = page.locator("#evidence img").first
    blur = "image => getComputedStyle(image).filter"
    assert picture.evaluate(blur) == "none"
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    page.get_by_role("button", name="Close").click()
    page.locator('#subjects-concepts a[href="#cell-1"]').click()
    assert "blur" in picture.evaluate(blur)
    page.get_by_label("Show the pictures").check()
    assert picture.evaluate(blur) == "none"


def test_the_keyboard_reaches_and_opens_every_cell(visit: Visit) -> None:
    page = visit()
    focused = "document.activeElement.getAttribute('href')"
    page.locator("#subjects-concepts thead button").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "#cell-0"
    for key, expected in [
        ("ArrowRight", 1),
        ("ArrowDown", 4),
        ("ArrowDown", 7),
        ("ArrowLeft", 6),
        ("ArrowLeft", 6),
        ("End", 8),
        ("ArrowRight", 8),
        ("ArrowUp", 5),
        ("Home", 3),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(focused) == f"#cell-{expected}", key
    assert page.evaluate("document.activeElement.ariaLabel").startswith("release/model-1, hourglass")
    # The heat map is one stop on the way through the page.
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "#cell-3"
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "#cell-3"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#subjects-concepts')") is None


def test_arrow_keys_pass_over_what_is_filtered_out(visit: Visit) -> None:
    page = visit()
    page.get_by_label("Search", exact=True).fill("arrow")
    page.locator("#subjects-concepts thead button:visible").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#cell-2"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#cell-5"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_the_screen(visit: Visit, tmp_path: Path, file: Path, width: int) -> None:
    path = file.parent / f"long-{width}.html"
    made = campaign([LONG, "b", "c" * 90], [HOSTILE * 3, *(f"concept-{at}" for at in range(9))], evaluations=12)
    write_page(path, made)
    page = visit(at=path, width=width, height=800)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator('#subjects-concepts a[href="#cell-1"]').click()
    dialog = page.get_by_role("dialog")
    assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    box = dialog.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    wide = dialog.evaluate(
        "dialog => [...dialog.querySelectorAll('*')].filter(it => it.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0


def test_a_full_page_is_small_and_works(visit: Visit, file: Path) -> None:
    """As many cells as one page may have, with sentences as long as those of real audits, and pictures."""
    path = file.parent / "full.html"
    subjects, concepts = [f"release/model-{at}" for at in range(200)], [f"concept-{at}" for at in range(10)]
    made = campaign(subjects, concepts, evaluations=12)
    assert len(made.cells) == pages.MAX_CELLS
    for cell in made.cells[:-1]:
        cell.verdict.statement = "relearning recovers the concept in 22 of 24 cases; " * 9
    write_page(path, made)
    assert path.stat().st_size < 10e6
    page = visit(at=path)
    head(page, "Subject").get_by_role("button").click()
    assert shown(page)[0] // 10 == 0
    page.get_by_label("Search", exact=True).fill("model-199 concept-9")
    assert shown(page) == [1999]
    page.locator("#all-cells tbody tr:not([hidden]) a").click()
    assert "MODEL_UNREADABLE" in page.get_by_role("dialog").inner_text()


def test_hostile_names_stay_text(visit: Visit, file: Path) -> None:
    path = file.parent / "hostile.html"
    evil = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "javascript:alert(3)", "&lt;b&gt;"]
    made = campaign(evil, evil)
    for cell in made.cells[:-1]:
        cell.verdict.summary = cell.verdict.statement = cell.verdict.evaluations[0].title = evil[0]
    write_page(path, made)
    page = visit(at=path)
    for index in (0, 5, 10):
        page.locator(f'#subjects-concepts a[href="#cell-{index}"]').click()
        text = page.get_by_role("dialog").inner_text()
        assert made.cells[index].subject in text
        assert evil[0] in text
        page.keyboard.press("Escape")
    page.get_by_label("Concept", exact=True).select_option(evil[1])
    assert page.locator("#shown").inner_text() == "4 of 16 cells"
    assert page.locator('img:not([src^="data:"]), script[src]').count() == 0


def test_the_policy_stops_a_script_that_is_not_the_pages_own(browser, file: Path) -> None:
    page = browser.new_page()
    page.goto(file.as_uri())
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
        }"""
    )
    assert page.evaluate("window.ran") is None
    page.close()


def test_in_print_everything_is_there_and_controls_are_not(visit: Visit, tmp_path: Path) -> None:
    page = visit(width=1100)
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    for frame in page.locator(".heatmap, .wide").all():
        assert frame.evaluate("frame => frame.scrollHeight <= frame.clientHeight + 1")
    printed = tmp_path / "campaign.pdf"
    page.pdf(path=printed, prefer_css_page_size=True)
    parts = text_of(printed)
    for at, said in enumerate(parts, 1):
        assert "campaign c1" in said
        assert f"page {at} of {len(parts)}" in said
    text = "".join(parts)
    assert text.index("The gate fails") < text.index("What changed since campaign c0")
    # The heads of a table are on each of its pages.
    assert all(("Brought back by" in said) == bool(re.search(r"of 5 .*\b0\.\d\d ", said)) for said in parts)
    # In the table of all cells at least.
    assert all(text.count(f"release/model-{at}") >= 3 for at in range(12))


def test_an_open_cell_is_printed_alone(visit: Visit, tmp_path: Path) -> None:
    page = visit("#cell-1")
    printed = tmp_path / "cell.pdf"
    page.pdf(path=printed, prefer_css_page_size=True)
    text = "".join(text_of(printed))
    assert f"release/model-0 {TIMES} heart" in text
    assert "Unlearn diff atk" in text
    assert "All cells" not in text
    assert "Next" not in text


def text_of(printed: Path) -> list[str]:
    """The text of each page of a PDF file."""
    command = [poppler("pdftotext"), "-layout", printed, "-"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return run.stdout.split("\f")[:-1]


def test_without_scripts_all_tables_are_there(visit: Visit, made: Made) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator("noscript").inner_text().startswith("Without scripts")
    assert not page.locator("#filters").is_visible()
    assert page.locator("#all-cells tbody tr").count() == len(made.cells)
    page.locator('#subjects-concepts a[href="#cell-7"]').click()
    assert page.url.endswith("#cell-7")


def test_a_folder_of_pages_is_walked_through(visit: Visit, made: Made, file: Path, monkeypatch) -> None:
    monkeypatch.setattr(pages, "MAX_CELLS", 15)
    packed = io.BytesIO()
    assert pages.write_html(packed, made.head, iter(made.cells), iter(made.comparisons)) == pages.ZIP
    folder = file.parent / "folder"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    page = visit(at=folder / "index.html")
    page.get_by_label("Search", exact=True).fill("model-11")
    assert page.locator("table.counts tbody tr:visible").count() == 1
    page.get_by_role("button", name="Show all").click()
    page.locator("summary", has_text="more").first.click()
    page.locator('a[href$="#cell-35"]').first.click()
    page.wait_for_url("**/cells-0003.html#cell-35")
    assert "MODEL_UNREADABLE" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("link", name="previous part").click()
    page.wait_for_url("**/cells-0002.html")
    assert page.locator("#all-cells tbody tr").count() == 15
    page.get_by_role("link", name="The gate fails").click()
    page.wait_for_url("**/index.html")
