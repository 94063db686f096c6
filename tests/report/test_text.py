"""What came from outside stays text, is seen, and stays in its place; numbers stay whole."""

import re
import unicodedata
from functools import cache

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.report_by_hand import PICTURES, Page, whole
from unerase.v1.audits_pb2 import Report
from unerase_backend import report
from unerase_backend.report.calibrated import table
from unerase_backend.report.text import outside, prose, visible

UNSEEN = {"Cc", "Cf", "Zl", "Zp"}
OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u200b\ufeff\x00\x1b\x7f\x9b\u2028"
MARKUP = [
    "<script>x()</script>",
    '" onload="x()',
    "'><img src=x onerror=x()>",
    "]]></style>",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
]

hostile = st.one_of(
    st.text(st.sampled_from(OVERRIDES + "a<>\"'&{}%/\\\u05d0"), min_size=1, max_size=12),
    st.sampled_from(MARKUP),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)

FIXED = {"digest", "picture_digest", "picture_digests", "near_miss_digests", "schema_version"}
"""Fields that choose a picture, or are the program's own."""


def plant(message: Message, text: str) -> int:
    """Put the text into every field that holds text, at any depth; return how many there were."""
    planted = 0
    for field, value in message.ListFields():
        if field.name in FIXED:
            continue
        repeated = field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            planted += _plant_map(message, field, text)
        elif field.message_type is not None:
            if field.message_type.full_name.startswith("google.protobuf."):
                continue
            for one in value if repeated else [value]:
                planted += plant(one, text)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if repeated:
                value[:] = [text + one for one in value]
            # What an evaluation is called ties its parts together: it is lengthened, not replaced.
            else:
                setattr(message, field.name, text + value)
            planted += 1
    return planted


def _plant_map(message: Message, field: FieldDescriptor, text: str) -> int:
    if field.message_type.fields_by_name["value"].type != FieldDescriptor.TYPE_STRING:
        return 0
    entries = getattr(message, field.name)
    for key, value in list(entries.items()):
        entries[text + key] = text + value
    return 1


def made_hostile(text: str) -> Report:
    made_report = whole()
    made_report.tenant = "someone"
    made_report.content.verdict.assumptions.append("The control never learned it.")
    made_report.content.manifest.hardware["device"] = "cpu"
    assert plant(made_report, text) > 60
    return made_report


@cache
def calm_page() -> Page:
    return Page(report.render_html(made_hostile("calm"), PICTURES.__getitem__))


def without_heading(style: str) -> str:
    return re.sub(r"@top-left \{ content: .*", "", style)


@cache
def plain_style() -> str:
    """The style sheet of a report that nobody has touched."""
    written = report.render_html(whole(), PICTURES.__getitem__)
    return without_heading(written[written.index("<style>") : written.index("</style>")])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile)
def test_no_text_of_a_report_becomes_anything_else(text: str) -> None:
    """Through the real template: every text of the message is hostile, and the page has the elements that it has."""
    written = report.render_html(made_hostile(text), PICTURES.__getitem__)
    shown, calm = Page(written), calm_page()
    assert shown.open == []
    assert {tag for tag, _ in shown.tags} == {tag for tag, _ in calm.tags}
    assert {name for _, attributes in shown.tags for name in attributes} == {
        name for _, attributes in calm.tags for name in attributes
    }
    unseen = {letter for letter in written if unicodedata.category(letter) in UNSEEN} - {"\n"}
    assert not unseen
    # Nothing of it gets into the style sheet.
    style = written[written.index("<style>") : written.index("</style>")]
    assert style.count('"') % 2 == 0
    assert without_heading(style) == plain_style()


def test_json_keeps_what_was_said() -> None:
    text = "a\u202eb\x1b\u200b"
    said = report.render_json(made_hostile(text))
    assert '"tenant": "a\u202eb\\u001b\u200bsomeone"' in said


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("hourglass", "hourglass"),
        ("sablier \u00e9t\u00e9 \u7802\u6f0f", "sablier \u00e9t\u00e9 \u7802\u6f0f"),
        ("a\u202eb", "a\u27e8U+202E\u27e9b"),
        ("a\nb\x1b[31m", "a\u27e8U+000A\u27e9b\u27e8U+001B\u27e9[31m"),
        ("hour\u200bglass", "hour\u27e8U+200B\u27e9glass"),
        ("\U000e0041", "\u27e8U+E0041\u27e9"),
    ],
)
def test_what_cannot_be_seen_is_written_out(given_text: str, shown: str) -> None:
    assert visible(given_text) == shown
    assert outside(given_text) == f"<bdi>{shown}</bdi>"


def test_names_and_prompts_are_isolated() -> None:
    """Text that runs from right to left leaves the words beside it where they are."""
    text = "\u05e9\u05e2\u05d5\u05df"
    written = report.render_html(made_hostile(text), PICTURES.__getitem__)
    bare = re.sub(
        r"<bdi>.*?</bdi>|<code>.*?</code>|<(?:title|desc|text|svg)\b.*?</(?:title|desc|text)>|<[^>]*>", "", written
    )
    left = [line for line in bare.splitlines() if text in line]
    assert left == [], left[:5]


def test_a_name_stays_in_its_cell_of_a_markdown_table() -> None:
    calibration = {"models": [{"name": "a|b\n\u202ec", "truth": "unknown"}], "evaluations": []}
    head, rule = table(calibration).splitlines()
    assert head.endswith("| a\\|b\u27e8U+000A\u27e9\u27e8U+202E\u27e9c |")
    assert rule.count("|") == 6


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        (
            "p = 9.5e-07, 3.8e-06 after Holm.",
            ["p = 9.5 \N{MULTIPLICATION SIGN} 10⁻⁷", "3.8 \N{MULTIPLICATION SIGN} 10⁻⁶"],
        ),
        ("in 23 of 24 cases (control 0 of 24)", ["23 of 24", "0 of 24"]),
        ("at most 0.142 above, one-sided 95 %, (-0.059 to 0.059)", ["0.142", "95 %", "-0.059 to 0.059"]),
        ("p = 1e-05.", ["p = 1 \N{MULTIPLICATION SIGN} 10⁻⁵"]),
        ("few-shot@40 of model v1.2.3 and sha 3e07ab", []),
    ],
)
def test_numbers_stay_whole(sentence: str, numbers: list[str]) -> None:
    assert re.findall(r'<span class="whole">(.*?)</span>', prose(sentence)) == numbers
