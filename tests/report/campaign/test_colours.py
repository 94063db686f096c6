"""The heat maps' colours, read from the style sheet: they can be told apart, and what stands on them can be read.

Contrast is WCAG's. Vision without red or green cones is simulated with Machado, Oliveira and Fernandes (2009), at full
severity, and distances are those of CIELAB.
"""

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest

SHEET = resources.files("unerase_backend.report.campaign").joinpath("campaign.css").read_text()
KINDS = ("removed", "open-heat", "avoided", "not-erased", "failed", "silent", "recovers-1", "recovers-2", "recovers-3")
CONCLUSIONS = ("removed", "open-heat", "avoided", "not-erased", "failed", "silent")

# https://www.inf.ufrgs.br/~oliveira/pubs_files/CVD_Simulation/CVD_Simulation.html, severity 1.0.
VISIONS = {
    "usual": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def _themes() -> dict[str, dict[str, str]]:
    """The colours of the light theme, of the dark one and of print."""
    blocks = re.findall(r":root \{(.*?)\}", SHEET, re.DOTALL)
    assert len(blocks) == 3
    return {
        name: dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block))
        for name, block in zip(("light", "dark", "print"), blocks, strict=True)
    }


THEMES = _themes()


def _linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _luminance(colour: str) -> float:
    return float(_linear(colour) @ np.array([0.2126, 0.7152, 0.0722]))


def _lab(colour: str, vision: np.ndarray) -> np.ndarray:
    linear = np.clip(vision @ _linear(colour), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    scaled = xyz / np.array([0.9505, 1.0, 1.089])
    bent = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * bent[1] - 16, 500 * (bent[0] - bent[1]), 200 * (bent[1] - bent[2])])


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_on_a_colour_can_be_read(theme: str, kind: str) -> None:
    colours = THEMES[theme]
    on, under = _luminance(colours[f"on-{kind}"]), _luminance(colours[kind])
    assert (max(on, under) + 0.05) / (min(on, under) + 0.05) >= 4.5


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", THEMES)
def test_conclusions_can_be_told_apart_by_everybody(theme: str, vision: str) -> None:
    labs = {kind: _lab(THEMES[theme][kind], VISIONS[vision]) for kind in CONCLUSIONS}
    near = {
        pair: round(float(np.linalg.norm(labs[pair[0]] - labs[pair[1]])), 1) for pair in combinations(CONCLUSIONS, 2)
    }
    assert min(near.values()) >= 10, min(near.items(), key=lambda each: each[1])
    recovers = [_lab(THEMES[theme][f"recovers-{depth}"], VISIONS[vision])[0] for depth in (1, 2, 3)]
    steps = np.diff(recovers)
    # Deeper is darker on paper and brighter in the dark.
    assert (np.abs(steps) >= 9).all()
    assert len(set(np.sign(steps))) == 1


def test_print_is_light() -> None:
    assert THEMES["print"] == THEMES["light"]
