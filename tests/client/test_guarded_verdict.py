"""The printed verdict on a model with guards: its heading says which of the two it is about."""

import io

import pytest
from rich.console import Console

from support.scripted_server import ended_audit
from unerase._display import show_verdict
from unerase.v1.types_pb2 import ModelAccess


@pytest.mark.parametrize(
    ("access", "about"),
    [
        (None, ""),
        (ModelAccess.MODEL_ACCESS_DEPLOYED, ", as deployed, with its guards"),
        (ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS, ", by its weights, without its guards"),
    ],
)
def test_a_verdict_says_in_its_heading_what_it_is_about(access: ModelAccess.ValueType | None, about: str) -> None:
    ended = ended_audit()
    ended.verdict.access = access or 0
    console = Console(width=160, file=io.StringIO(), record=True)
    show_verdict(console, ended)
    heading = f"{ended.spec.subject}{about}: {ended.spec.concept} is avoided"
    assert heading in console.export_text().splitlines()
