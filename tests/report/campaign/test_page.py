"""The campaign's page as it is without a browser: its structure, its safety, its bytes."""

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from support.campaign_by_hand import Made, campaign
from support.report_by_hand import HOSTILE, PICTURES, Page
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell, CellState
from unerase.v1.comparisons_pb2 import Change
from unerase.v1.types_pb2 import ModelAccess, NotApplicable
from unerase.v1.verdicts_pb2 import Conclusion, InapplicableEvaluation
from unerase_backend.report.campaign import HTML, ZIP, pages, write_html
from unerase_backend.report.campaign.words import LEGEND, OUTCOMES


def written(made: Made, **options: Any) -> str:
    """The page of a campaign of one page."""
    file = io.BytesIO()
    shown: dict[str, Any] = {"content_of": made.content_of, "read_picture": PICTURES.get} | options
    assert write_html(file, made.head, iter(made.cells), iter(made.comparisons), **shown) == HTML
    return file.getvalue().decode()


def evidence(text: str) -> dict[str, Any]:
    """The JSON of a page."""
    (found,) = re.findall(r'<script type="application/json" id="cells">(.*?)</script>', text, re.DOTALL)
    held: dict[str, Any] = json.loads(found)
    return held


def tables(text: str, identifier: str) -> str:
    (found,) = re.findall(rf'<table[^>]*id="{identifier}".*?</table>', text, re.DOTALL)
    return str(found)


def test_the_page_is_well_formed_and_accessible() -> None:
    text = written(campaign())
    shown = Page(text)
    assert text.startswith("<!doctype html>")
    assert shown.open == []
    assert len(shown.of("h1")) == 1
    assert all(attributes.get("scope") in {"col", "row"} for attributes in shown.of("th"))
    identifiers = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {link["href"].removeprefix("#") for link in shown.of("a")} <= set(identifiers)
    titled = [at for at, (tag, attributes) in enumerate(shown.tags) if tag == "svg" and "role" in attributes]
    assert all(shown.tags[at + 1][0] == "title" for at in titled)
    assert {field["id"] for field in shown.of("input", "select")} == {label["for"] for label in shown.of("label")}


def test_nothing_comes_from_outside_and_the_policy_allows_nothing_else() -> None:
    text = written(campaign())
    shown = Page(text)
    assert not shown.of("link", "iframe", "object", "embed", "base", "img")
    for tag, attributes in shown.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "action", "poster", "data", "srcset", "xlink:href"}:
                assert value.startswith("#"), (tag, name)
    without_names = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttpRequest|innerHTML|eval\(", without_names)
    policy = next(meta["content"] for meta in shown.of("meta") if "http-equiv" in meta)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")


def test_the_gates_verdict_comes_first_and_then_what_changed() -> None:
    text = written(campaign())
    order = ["The gate fails", 'id="gate"', 'id="changes"', 'id="matrix"', 'id="by-evaluation"', 'id="planes"']
    places = [text.index(each) for each in [*order, 'id="all"']]
    assert places == sorted(places)
    shown = Page(text).text
    assert "2 pass" in shown or "1 pass" in shown
    assert "One cell is worse than in campaign c0" in shown
    assert "the model was replaced" in shown


def test_all_that_changed_is_listed_and_no_more() -> None:
    made = campaign([f"m{at}" for at in range(3)], ["hourglass", "heart", "arrow"])
    for one in made.comparisons:
        one.replaced = False
        one.audits.change = Change.CHANGE_SAME
        one.audits.first_conclusion = one.audits.second_conclusion = Conclusion.CONCLUSION_AVOIDED
    made.comparisons[1].audits.change = Change.CHANGE_BETTER
    made.comparisons[3].audits.first_conclusion = Conclusion.CONCLUSION_REMOVED
    made.comparisons[4].replaced = True
    made.comparisons[6].ClearField("audits")
    made.comparisons[6].problem = "the first campaign has no such cell"
    made.comparisons[7].audits.change = Change.CHANGE_WORSE
    text = written(made)
    section = text[text.index('id="changes"') : text.index('id="matrix"')]
    assert re.findall(r'href="#cell-(\d)"', section) == ["7", "1", "3", "4", "6"]
    assert "the first campaign has no such cell" in section
    assert [cell.get("x", [""])[0] for cell in evidence(text)["cells"]] == [
        "same",
        "better",
        "same",
        "same",
        "same",
        "same",
        "not compared",
        "worse",
        "",
    ]


def test_without_a_gate_and_a_compared_campaign_their_parts_are_absent() -> None:
    text = written(campaign(gate=False, compared=False))
    assert "No gate was set" in text
    for absent in ('id="gate"', 'id="changes"', 'id="gated"', 'id="change"'):
        assert absent not in text


def test_the_heat_map_has_the_conclusion_of_every_cell() -> None:
    made = campaign([f"m{at}" for at in range(5)], ["hourglass", "heart", "arrow"])
    table = tables(written(made), "subjects-concepts")
    for cell in made.cells:
        (found,) = re.findall(rf'<td class="heat ([a-z-]+)" [^>]*><a href="#cell-{cell.index}">(.*?)</a>', table)
        if cell.HasField("verdict"):
            word = Conclusion.Name(cell.verdict.conclusion).removeprefix("CONCLUSION_").lower().replace("_", " ")
        else:
            word = "failed"
        assert f"<span>{word}</span>" in found[1]
    assert table.count("<tr") == 6


def test_more_concepts_than_subjects_go_down() -> None:
    table = tables(written(campaign(["a", "b"], [f"c{at}" for at in range(20)])), "subjects-concepts")
    assert 'data-down="concept"' in table
    assert table.count("<tr") == 21


def test_the_heat_map_of_evaluations_has_the_worst_of_a_subjects_concepts() -> None:
    """Against the highest excess among the cells, found in another way."""
    made = campaign([f"m{at}" for at in range(6)], ["hourglass", "heart"], evaluations=5)
    table = tables(written(made), "subjects-evaluations")
    rows = re.findall(r'<tr data-row="(m\d)">(.*?)</tr>', table, re.DOTALL)
    assert len(rows) == 6
    recovers = 0
    for name, row in rows:
        shown = re.findall(r"<a href=[^>]*>([^<]*)", row)
        verdicts = [cell.verdict for cell in made.cells if cell.subject == name and cell.HasField("verdict")]
        for at, text in enumerate(shown):
            results = [verdict.evaluations[at] for verdict in verdicts]
            found = [round(100 * result.excess.value) for result in results if result.outcome == 2]
            if found:
                recovers += 1
                assert text == f"\N{MULTIPLICATION X} +{max(found)}"
    assert recovers > 8


def test_hostile_text_is_shown_as_text() -> None:
    made = campaign(concepts=[HOSTILE, "</script><script>alert(1)</script>", "a\u202eb", "<!--"])
    text = written(made)
    assert HOSTILE not in text
    # The page's own two.
    assert text.count("</script>") == 2
    assert HOSTILE in Page(text).text
    assert "\u202e" not in text
    held = evidence(text)
    assert held["cells"][0]["c"] == HOSTILE
    assert held["cells"][2]["c"] == "a\u27e8U+202E\u27e9b"


def test_a_cell_holds_its_evidence() -> None:
    made = campaign()
    held = evidence(written(made))
    first, last = held["cells"][0], held["cells"][-1]
    verdict = made.cells[0].verdict
    assert (first["s"], first["c"], first["a"]) == ("models/esd", "hourglass", "audit0")
    assert first["n"][0] == verdict.summary
    assert "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1.5" in first["n"][1]
    for shown, result in zip(first["e"], verdict.evaluations, strict=True):
        title, outcome, budget, stopped, subject, reference, control, excess = shown
        assert held["titles"][title] == result.title
        assert held["outcomes"][outcome][2] == "recovers"
        assert (budget, stopped) == (1, 0)
        assert subject[:2] == [result.subject.hits, 24]
        assert subject[2] == round(100 * result.subject.wilson.lower)
        assert (reference[0], control[0]) == (24, 0)
        assert excess[0] == f"+{round(100 * result.excess.value)}"
        assert excess[5] == 15
    assert first["g"][0][2:4] == ["fails", "worst_conclusion"]
    assert first["x"][0] == "worse"
    assert first["x"][2] == "replaced"
    assert (last["w"], last["n"][0]) == ("! failed", "MODEL_UNREADABLE")
    assert "is cut off after" in last["n"][1]
    assert "e" not in last
    assert "p" not in last


def test_both_accesses_of_a_guarded_model_are_shown() -> None:
    made = campaign()
    deployed = made.cells[1].verdict.deployed
    deployed.CopyFrom(made.cells[2].verdict)
    deployed.access = ModelAccess.MODEL_ACCESS_DEPLOYED
    held = evidence(written(made))
    assert held["cells"][1]["d"][1] == deployed.summary
    assert len(held["cells"][1]["d"][2]) == 4


def test_pictures_of_a_sensitive_concept_are_marked() -> None:
    cells = evidence(written(campaign()))["cells"]
    assert [cell.get("v") for cell in cells] == [None, 1, None, 1, None, None]
    assert all(cell["p"] for cell in cells[:-1])


def test_what_no_figure_has_is_not_shown_as_one() -> None:
    made = campaign()
    for cell in made.cells[:-1]:
        cell.verdict.ClearField("likelihood")
        for result in cell.verdict.evaluations:
            result.ClearField("excess")
            result.ClearField("control")
    text = written(made)
    assert 'id="planes"' not in text
    without_script = text[: text.rindex("<script>")]
    assert "nan" not in re.sub(r"data:image/[a-z]+;base64,[^\"]*", "", without_script).lower()


def test_a_campaign_without_cells_has_a_page() -> None:
    file = io.BytesIO()
    assert write_html(file, CampaignReport(), []) == HTML
    assert "There are no cells." in file.getvalue().decode()


def test_what_does_not_apply_is_said_with_its_reason_and_is_no_failure() -> None:
    made = campaign()
    lacking, bare = made.cells[:2]
    why = NotApplicable(reason="predictions without guidance are needed")
    lacking.verdict.missing.append("likelihood")
    lacking.verdict.not_applicable.append(InapplicableEvaluation(name="likelihood", required=True, why=why))
    bare.ClearField("verdict")
    bare.state, bare.error_reason, bare.error_message = CellState.CELL_STATE_FAILED, "NOT_APPLICABLE", "nothing applies"
    first, second = evidence(written(made))["cells"][:2]
    figures = dict(first["f"])
    assert figures["not applicable"] == f"likelihood: {why.reason}"
    assert "missing evaluations" not in figures
    assert second["w"].endswith(" not applicable")
    assert second["n"] == ["NOT_APPLICABLE", "nothing applies"]


def test_no_two_kinds_share_a_sign() -> None:
    for kinds in (LEGEND, OUTCOMES):
        assert len({said.sign for said in kinds}) == len({said.word for said in kinds}) == len(kinds)


def archive(made: Made, **options: Any) -> tuple[bytes, dict[str, str]]:
    file = io.BytesIO()
    assert write_html(file, made.head, iter(made.cells), iter(made.comparisons), **options) == ZIP
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as opened:
        assert opened.testzip() is None
        return file.getvalue(), {name: opened.read(name).decode() for name in opened.namelist()}


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of five cells."""
    monkeypatch.setattr(pages, "MAX_CELLS", 5)


@pytest.mark.usefixtures("small_pages")
def test_more_cells_than_one_page_shows_are_a_folder_of_pages() -> None:
    made = campaign([f"m{at}" for at in range(6)], ["hourglass", "heart"])
    _, members = archive(made)
    assert list(members) == ["index.html", "cells-0001.html", "cells-0002.html", "cells-0003.html"]
    parts = list(members.values())[1:]
    assert [[cell["i"] for cell in evidence(part)["cells"]] for part in parts] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11],
    ]
    index = members["index.html"]
    assert "The gate fails" in index
    assert "What changed since" in index
    for at, (name, text) in enumerate(members.items()):
        identifiers = {each["id"] for _, each in Page(text).tags if "id" in each}
        for link in Page(text).of("a"):
            file, _, anchor = link["href"].partition("#")
            if file:
                assert file in members, (name, link)
            if anchor:
                there = {each["id"] for _, each in Page(members[file]).tags if "id" in each} if file else identifiers
                assert anchor in there, (name, link)
        assert ("next part" in text) == (at in {1, 2})
    # Every cell that the gate or a comparison names is on the page that the index says.
    assert 'href="cells-0001.html#cell-0"' in index
    assert 'href="cells-0003.html#cell-11"' in index


@pytest.mark.usefixtures("small_pages")
def test_the_index_counts_every_cell() -> None:
    made = campaign([f"m{at}" for at in range(6)], ["hourglass", "heart"])
    index = archive(made)[1]["index.html"]
    counts = re.findall(r'<td class="n heat [a-z-]+" data-v="(\d+)">', index)
    # Once by concept and once by subject.
    assert sum(map(int, counts)) == 2 * len(made.cells)


@pytest.mark.usefixtures("small_pages")
def test_equal_campaigns_give_equal_bytes() -> None:
    made = campaign([f"m{at}" for at in range(6)], ["hourglass", "heart"])
    again = campaign([f"m{at}" for at in range(6)], ["hourglass", "heart"])
    shown: dict[str, Any] = {"content_of": made.content_of, "read_picture": PICTURES.get}
    assert archive(made, **shown)[0] == archive(again, **shown)[0]


@pytest.mark.usefixtures("small_pages")
def test_the_cells_of_at_most_two_pages_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the memory does not grow with the campaign."""
    made = campaign([f"m{at}" for at in range(20)], ["hourglass", "heart"])
    taken = rendered = most = 0

    def cells() -> Iterator[CampaignReportCell]:
        nonlocal taken, most
        for cell in made.cells:
            taken += 1
            most = max(most, taken - rendered)
            yield cell

    drawn = pages.render_page

    def render(head: CampaignReport, rows: list[Any], *rest: Any) -> str:
        nonlocal rendered
        text = drawn(head, rows, *rest)
        rendered += len(rows)
        return text

    monkeypatch.setattr(pages, "render_page", render)
    assert write_html(io.BytesIO(), made.head, cells()) == ZIP
    assert taken == rendered == 40
    assert most <= 3 * 5
