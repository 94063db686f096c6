"""A third party's probe, attack and judge, of a package that is really installed: found, run, held to the same laws."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import example

# What a slow machine may take: each starts a process that makes pictures.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]


def run(environment: dict[str, str], *arguments: str) -> str:
    """Run Python where the package is installed, and return what it printed."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_an_audit_with_its_probe_its_attack_and_its_judge(
    environment: dict[str, str], catalogue: Path, tmp_path: Path
) -> None:
    script = str(Path(__file__).with_name("example_audit.py"))
    names = [example.PROBE, example.ATTACK, example.MEASURE]
    said = json.loads(run(environment, script, str(catalogue), str(tmp_path), *names))
    assert example.PROBE in said["probes"]
    assert example.ATTACK in said["attacks"]
    assert example.KIND in said["kinds"]
    assert said["broken"] == {}
    # Beside our own, which are all there.
    assert {"standard-prompt", "noise-based"} <= set(said["probes"])
    assert "textual-inversion" in said["attacks"]
    assert said["observations"] == {
        f"{name}/{role}/0": 8 if name == example.MEASURE else 6
        for name in names
        for role in ("subject", "reference", "control")
    }
    assert said["scored"]
    assert said["judges"] == sorted(["testbed/clip", "testbed/judge", example.JUDGE])
    # Its judge sees what ours sees: the concept where it is, and not where it never was.
    assert min(said["agreement"].values()) >= 0.7
    assert said["reference"][example.PROBE] == 6
    assert set(said["control"].values()) == {0}
    # What its owner requires counts as what we require does: the battery lacks it, every preset holds it.
    assert example.REQUIRED in said["missing"]
    assert "standard-prompt" in said["missing"]
    assert all(example.REQUIRED in evaluations for evaluations in said["presets"].values())
    assert set(said["presets"]["full"]) == {*said["probes"], *said["attacks"]}
    assert example.PROBE not in said["presets"]["standard"]
    # Its measure is a table of its own, in the report and on the page.
    (measure,) = said["report"]
    assert (measure["name"], measure["title"]) == (example.MEASURE, "Error profile")
    assert [row["figure"] for row in measure["figures"]] == ["early", "late", "middle"]
    for row in measure["figures"]:
        assert {row[role]["cases"] for role in ("subject", "reference", "control")} == {8}
        assert f"{row['subject']['mean']['value']:.3g}" in said["page"]
    assert "<h3><bdi>Error profile</bdi></h3>" in said["page"]


def test_the_conformance_suite_runs_over_it(environment: dict[str, str], catalogue: Path) -> None:
    laws = "second_run or bounds or says_what or complete or on_the_picture_alone or nothing_else or every_kind"
    ours = " or ".join([example.PROBE, example.ATTACK, example.REQUIRED, example.MEASURE, example.JUDGE])
    chosen = f"({ours} or every_kind) and ({laws})"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance"]
    shown = run(environment, *command, "--catalogue", str(catalogue), "-k", chosen)
    # Four laws for each evaluation, two for the judge, and that every kind has one.
    assert "19 passed" in shown


def test_its_family_of_models_equals_diffusers(environment: dict[str, str], tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("aura_flow.py"))
    said = json.loads(run(environment, script, str(tmp_path)))
    assert {"aura-flow", "stable-diffusion", "stable-diffusion-3"} <= set(said["families"])
    assert said["broken"] == {}
    assert said["problems"] == []
    assert said["family"] == "AuraFlow"
    assert said["difference"] < 1e-4
    assert said["moved"] > 0.1
    assert said["learned"] < 1e-5
    # An edit of it makes pictures anew.
    assert said["source"]


@pytest.mark.parametrize(
    ("module", "page"), [("doubled_guidance", "add-a-probe.md"), ("aura_flow", "add-a-backbone.md")]
)
def test_the_documentation_shows_its_module(module: str, page: str) -> None:
    file = example.PACKAGE / "src" / "unerase_example" / f"{module}.py"
    assert f"```python\n{file.read_text()}```" in (ROOT / "docs" / page).read_text()
