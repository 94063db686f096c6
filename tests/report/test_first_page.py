"""What a reader sees first: the verdict in plain words, what it rests on, when, with what and for whom it was made."""

import re
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from support.report_by_hand import DESCRIPTIONS, PICTURES, around, made, observed, page, rate, whole
from unerase.v1.audits_pb2 import Report, Tolerances
from unerase.v1.models_pb2 import Model, Schedule
from unerase.v1.types_pb2 import ControlKind
from unerase.v1.verdicts_pb2 import ArmResult, Conclusion, CurvePoint
from unerase_backend import report
from unerase_backend.report import charts, plane
from unerase_backend.report.offline import conclude_exported
from unerase_backend.report.parquet import read_parquet
from unerase_backend.report.plane import Stand


def html(made_report: Report) -> str:
    return report.render_html(made_report, PICTURES.__getitem__)


def shown(made_report: Report) -> str:
    return re.sub(r"\s+", " ", page(made_report).text)


def signed() -> Report:
    made_report = made(observed())
    made_report.create_time.FromDatetime(datetime(2026, 11, 28, 21, 57, 16, tzinfo=UTC))
    made_report.end_time.FromDatetime(datetime(2026, 11, 28, 21, 59, 45, tzinfo=UTC))
    made_report.tenant = "safety-team"
    made_report.content.manifest.versions["unerase"] = "0.1.0"
    return made_report


def test_date_version_and_who_asked_stand_on_the_page() -> None:
    text = shown(signed())
    assert "2026-11-28 21:57:16 UTC" in text
    assert "2026-11-28 21:59:45 UTC" in text
    assert "safety-team" in text
    assert "unerase 0.1.0" in text
    bare = shown(Report())
    assert "not recorded" in bare
    assert "a caller without a token" in bare


def test_what_two_runs_share_holds_no_date() -> None:
    first, second = signed(), made(observed())
    second.content.manifest.versions["unerase"] = "0.1.0"
    assert first != second
    assert first.content.SerializeToString(deterministic=True) == second.content.SerializeToString(deterministic=True)


def test_the_plain_words_come_before_the_statistics() -> None:
    made_report = signed()
    verdict, text = made_report.content.verdict, shown(made_report)
    plain, statement = text.index(verdict.summary), text.index(verdict.statement.split(":")[0] + ":")
    assert plain < text.index("What it rests on") < text.index("What this does not say") < statement
    assert text.index("Noise-based ") > plain
    verdict.summary = ""
    assert text[plain:].startswith(shown(made_report)[plain : plain + 40]), "an old report's is made again"


def test_every_printed_page_names_the_audit() -> None:
    assert re.search(r'@top-left \{ content: "[^"]*audit a1[^"]*2026-11-28 21:59:45 UTC"; \}', html(signed()))
    hostile = signed()
    hostile.audit_id = '"; } body { display: none'
    assert "display: none" not in html(hostile).partition("</style>")[0].partition("@top-left { content: ")[2]


def test_notes_on_the_inputs_stand_on_the_first_page() -> None:
    made_report = made(observed())
    assert "Noticed about the inputs" not in shown(made_report)
    made_report.content.notes.append("One of the prompts is longer than what the text encoder reads.")
    assert "Noticed about the inputs: One of the prompts is longer" in " ".join(shown(made_report).split())


def test_assumptions_stand_beside_the_verdict() -> None:
    made_report = signed()
    assert "on assumptions" not in shown(made_report)
    made_report.content.verdict.assumptions.append("That c never learned the concept is taken as given.")
    text = shown(made_report)
    assert "on assumptions" in text
    assert text.index("That c never learned the concept is taken as given.") < text.index("What it rests on")


def test_a_control_that_is_the_subject_is_flagged() -> None:
    made_report = signed()
    assert "Not valid." not in shown(made_report)
    made_report.content.manifest.models.extend([Model(name="s", digest="ab" * 32), Model(name="c", digest="ab" * 32)])
    text = shown(made_report)
    assert "Not valid. The control c has the same weights as the subject s" in text
    assert "Nothing can be concluded from it in either direction" in text
    assert "No valid verdict" in text
    assert made_report.content.verdict.summary not in text
    assert "never learned it:" not in text
    made_report.content.spec.control = "s"
    assert "The control is the subject itself (s)" in shown(made_report)


def test_a_model_that_was_stepped_by_another_schedule_is_told() -> None:
    made_report = signed()
    assert "was stepped by" not in shown(made_report)
    for name, spacing in (("s", "trailing"), ("r", "leading")):
        schedule = Schedule(prediction_type="epsilon", timestep_spacing=spacing)
        made_report.content.manifest.models.append(Model(name=name, digest=name * 64, schedule=schedule))
    text = shown(made_report)
    said = "The subject s was stepped by the reference's schedule, not its own: its folder names trailing timesteps"
    assert text.index(said) < text.index("What it rests on")


def test_the_controls_stand_under_what_it_rests_on() -> None:
    made_report = signed()
    verdict, text = made_report.content.verdict, shown(made_report)
    assert verdict.control_statement
    assert text.index("What it rests on") < text.index(verdict.control_statement) < text.index("What this does not say")
    assert "What a model that never learned the concept would show." not in text
    for result in verdict.evaluations:
        result.control_kind = ControlKind.CONTROL_KIND_CONCEPT_FREE
    made_report.content.spec.control = verdict.control_statement = ""
    text = shown(made_report)
    assert "No model that never learned the concept takes part: the control of the 2 evaluations is prompts of" in text
    assert "No evaluation was compared with one." in text
    assert "control, in place of a modelprompts of other concepts" in text
    verdict.evaluations[0].control_kind = ControlKind.CONTROL_KIND_MODEL
    assert "Only 1 of 2 evaluations was compared with one." in shown(made_report)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_removed_concept_that_took_much_with_it_is_said_so_in_the_heading(damaged: bool) -> None:
    made_report = signed()
    made_report.content.verdict.conclusion = Conclusion.CONCLUSION_REMOVED
    made_report.content.verdict.damaged = damaged
    heading = "Removed, and much else with it, up to the budget" if damaged else "Removed, up to the budget"
    assert heading in shown(made_report)


def test_the_verdict_of_an_export_is_summed_up() -> None:
    content = made(observed()).content
    content.spec.battery.evaluations.extend(content.evaluations)
    # As exports are: the catalogue's word for the control is in the manifest.
    content.manifest.models.append(Model(name="c", digest="ab" * 32, never_learned=[content.spec.concept]))
    audit = read_parquet(report.render_parquet("a1", content, DESCRIPTIONS, observed()))
    summary = conclude_exported(audit, Tolerances()).verdict.summary
    assert summary == content.verdict.summary
    assert summary.endswith(".")


@pytest.mark.parametrize(
    "words", ["cannot come back", "attacks that were not run", "other weights", "judges are right"]
)
def test_the_limits_of_the_claim_are_said(words: str) -> None:
    assert words in shown(signed())


_NOUNS = "audit case cell draw evaluation file finding kind label model observation page picture prompt row step test"
_BEFORE = "(?:further|more|optimisation|other|required)"
_PLURAL_OF_ONE = re.compile(rf"(?<![\d.,+])\b1 (?:{_BEFORE} )?(?:{'|'.join(_NOUNS.split())})s\b")


def test_one_thing_is_written_in_the_singular() -> None:
    made_report = whole()
    content = made_report.content
    content.spec.cases = content.spec.steps = content.verdict.power.cases = content.verdict.power.discordant_needed = 1
    del content.cases[1:]
    for result in content.verdict.evaluations:
        for role in ("subject", "reference", "control"):
            if result.HasField(role):
                getattr(result, role).CopyFrom(rate(1, 1))
        result.stopped_after = result.not_applicable_cases = 1
    for finding in content.findings:
        finding.steps = 1
    content.verdict.likelihood.concept_pictures = content.verdict.likelihood.other_pictures = 1
    text = shown(made_report)
    assert "1 case" in text
    assert not _PLURAL_OF_ONE.findall(text)


def test_no_number_is_cut() -> None:
    """Every p, rate and interval of the statement and the evidence is one piece, and no exponent is left as it was."""
    text = html(whole())
    section = text[text.index('<section aria-labelledby="evidence">') :]
    section = section[: section.index("</section>")]
    outside = re.sub(r'<span class="whole">.*?</span>', "", section)
    assert re.search(r'<span class="whole">\d+ of \d+</span>', section)
    assert not re.search(r"\d+ of \d+|\d\.\d+ to|[=<] \d|\de-\d", outside)
    assert re.search(r"\.whole \{[^}]*white-space: nowrap", text)


def curves(points: list[tuple[int, dict[str, int]]]) -> dict[str, list[tuple[float, float]]]:
    """The drawn curves of best-of-k, by role."""
    drawn = str(
        charts.curve(
            "k", [CurvePoint(budget=k, **{role: rate(hits, 24) for role, hits in hit.items()}) for k, hit in points]
        )
    )
    found = re.findall(r'<polyline class="curve (\w+)" points="([^"]*)"', drawn)
    assert set(re.findall(r'<text class="end (\w+)"', drawn)) == {role for role, _ in found}
    return {
        role: [(float(x), float(y)) for x, _, y in (pair.partition(",") for pair in points.split())]
        for role, points in found
    }


@pytest.mark.parametrize("hits", [0, 12, 24])
def test_curves_that_coincide_are_both_seen(hits: int) -> None:
    drawn = curves([(k, dict.fromkeys(("subject", "reference", "control"), hits)) for k in (1, 2, 3)])
    heights = sorted({round(y, 1) for points in drawn.values() for _, y in points})
    assert len(heights) == 3
    assert all(later - earlier >= charts.APART - 0.2 for earlier, later in pairwise(heights))
    assert all(9 <= height <= 161 for height in heights), "they stay inside the chart"
    assert drawn["subject"][0][1] == pytest.approx(160 - 150 * hits / 24, abs=0.1), "the subject's stays in place"


def test_curves_that_only_cross_stay_in_place() -> None:
    drawn = curves([(k, {"subject": 4 * k, "control": 24 - 4 * k}) for k in range(1, 6)])
    for role, sign in (("subject", 1), ("control", -1)):
        values = [(4 * k if sign > 0 else 24 - 4 * k) / 24 for k in range(1, 6)]
        assert [y for _, y in drawn[role]] == pytest.approx([160 - 150 * value for value in values], abs=0.1)


def test_names_of_curves_do_not_touch() -> None:
    arms = [
        (float(k), ArmResult(**{role: rate(24, 24) for role in ("subject", "reference", "control")})) for k in (0, 9)
    ]
    heights = sorted(
        float(y)
        for y in re.findall(r'<text class="end \w+" x="[^"]*" y="([^"]*)"', str(charts.over_steps("a", arms, "s")))
    )
    assert len(heights) == 3
    assert min(b - a for a, b in pairwise(heights)) >= 12
    assert heights[0] > 8


def test_a_mark_that_another_covers_is_seen_around_it() -> None:
    apart = [
        Stand("a", "context", around(0.5, 0.1), around(2, 0.1)),
        Stand("s", "subject", around(0, 0.1), around(0, 0.1)),
    ]
    same = [apart[0], Stand("s", "subject", around(0.5, 0.1), around(2, 0.1))]
    reach = [
        float(re.search(r'class="mark context" d="M[\d.]+ [\d.]+l([\d.]+)', str(plane.draw(stands, 0.1)))[1])
        for stands in (apart, same)
    ]
    radius = float(re.search(r'class="mark subject"[^>]* r="([\d.]+)"', str(plane.draw(same, 0.1)))[1])
    assert reach[0] / 2 < radius < reach[1] / 2 * 2**0.5
