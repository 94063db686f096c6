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
    said = json.loads(run(environment, script, str(catalogue), str(tmp_path), example.PROBE, example.ATTACK))
    assert example.PROBE in said["probes"]
    assert example.ATTACK in said["attacks"]
    assert example.KIND in said["kinds"]
    assert said["broken"] == {}
    # Beside our own, which are all there.
    assert {"standard-prompt", "noise-based"} <= set(said["probes"])
    assert "textual-inversion" in said["attacks"]
    assert said["observations"] == {
        f"{name}/{role}/0": 6
        for name in (example.PROBE, example.ATTACK)
        for role in ("subject", "reference", "control")
    }
    assert said["scored"]
    assert said["judges"] == sorted(["testbed/clip", "testbed/judge", example.JUDGE])
    # Its judge sees what ours sees: the concept where it is, and not where it never was.
    assert min(said["agreement"].values()) >= 0.7
    assert said["reference"][example.PROBE] == 6
    assert set(said["control"].values()) == {0}


def test_the_conformance_suite_runs_over_it(environment: dict[str, str], catalogue: Path) -> None:
    laws = "second_run or bounds or says_what or complete or on_the_picture_alone or nothing_else or every_kind"
    chosen = f"({example.PROBE} or {example.ATTACK} or {example.JUDGE} or every_kind) and ({laws})"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance"]
    shown = run(environment, *command, "--catalogue", str(catalogue), "-k", chosen)
    # Four laws for each evaluation, two for the judge, and that every kind has one.
    assert "11 passed" in shown


def test_the_documentation_shows_its_probe() -> None:
    module = example.PACKAGE / "src" / "unerase_example" / "doubled_guidance.py"
    assert f"```python\n{module.read_text()}```" in (ROOT / "docs" / "add-a-probe.md").read_text()
