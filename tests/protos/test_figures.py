"""Figures that stand in words, in the contracts and in the command's help, are those that the code goes by."""

import re
from functools import cache
from pathlib import Path

import pytest

from support.command_tree import whole_command
from unerase_backend.catalogue import GUIDANCE_SCALES, MAX_STEPS
from unerase_backend.coordinator.api.concept_upload import MAX_PICTURE_BYTES, MAX_PICTURES, MAX_UPLOAD_BYTES
from unerase_backend.coordinator.api.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from unerase_backend.coordinator.planning.presets import DEFAULT_PRESET
from unerase_backend.evaluation.units import MAX_CASES
from unerase_backend.verdict.decision import (
    DEFAULT_CASES,
    ERROR_BEARING_CASES,
    EXCESS_OF_MANY_CASES,
    EXCESS_OF_ONE_DRAW,
    MANY_CASES,
    Tolerances,
)

PROTOS = Path(__file__).resolve().parents[2] / "protos" / "unerase" / "v1"
MEBIBYTE = 1024 * 1024
PAGE = f"At most this many; 0 means {DEFAULT_PAGE_SIZE}; more than {MAX_PAGE_SIZE:,} is refused."
TOLERANCES = Tolerances()


@cache
def _comments(contract: str) -> dict[str, str]:
    """The comment of each field of a contract, by the names of its message and its own, in one line."""
    found, message, comment = {}, "", []
    for line in (PROTOS / contract).read_text().splitlines():
        if match := re.match(r"message (\w+)", line):
            message = match[1]
        if line.strip().startswith("//"):
            comment.append(line.strip().removeprefix("//").strip())
            continue
        if match := re.match(r"\s+(?:optional |repeated )?[\w.]+ (\w+) = \d+", line):
            found[f"{message}.{match[1]}"] = " ".join(comment)
        comment = []
    return found


@pytest.mark.parametrize(
    ("contract", "field", "said"),
    [
        ("audits.proto", "AuditSpec.cases", f"{DEFAULT_CASES} without a preset; at most {MAX_CASES}."),
        ("audits.proto", "AuditSpec.steps", f"at most {MAX_STEPS}."),
        ("audits.proto", "AuditSpec.guidance_scale", "{:g} to {:g}.".format(*GUIDANCE_SCALES)),
        (
            "audits.proto",
            "Tolerances.excess",
            f"default {EXCESS_OF_MANY_CASES:.2f}, and {TOLERANCES.excess:.2f} in audits of fewer than {MANY_CASES} "
            "cases.",
        ),
        (
            "audits.proto",
            "Tolerances.excess_of_one_draw",
            f"default {EXCESS_OF_ONE_DRAW:.2f} in audits of {ERROR_BEARING_CASES} cases or more that do not give "
            "`excess`, and `excess` in all others.",
        ),
        ("audits.proto", "Tolerances.destruction", f"default {TOLERANCES.destruction:.2f}."),
        ("audits.proto", "Tolerances.general_damage", f"default {TOLERANCES.general_damage:.2f}."),
        ("audits.proto", "Tolerances.interference", f"default {TOLERANCES.interference:.2f}."),
        ("audits.proto", "ListAuditsRequest.page_size", PAGE),
        ("models.proto", "ListModelsRequest.page_size", PAGE),
        ("models.proto", "ListConceptsRequest.page_size", PAGE),
        (
            "models.proto",
            "PictureChunk.chunk",
            f"at most {MAX_PICTURE_BYTES // MEBIBYTE} MiB a picture and {MAX_UPLOAD_BYTES // MEBIBYTE} MiB in all.",
        ),
        ("models.proto", "PictureChunk.tile", f"at most {MAX_PICTURES:,} of them."),
    ],
)
def test_a_comment_of_the_contracts(contract: str, field: str, said: str) -> None:
    assert said in _comments(contract)[field]


def test_the_help_of_the_command() -> None:
    for name in ("audit", "calibrate"):
        (cases,) = [option for option in whole_command().commands[name].params if option.name == "cases"]
        assert f"{DEFAULT_CASES} without a preset" in cases.help


def test_the_commands_preset_is_the_backends_default() -> None:
    (option,) = [each for each in whole_command().commands["audit"].params if each.name == "battery"]
    assert option.default == DEFAULT_PRESET
