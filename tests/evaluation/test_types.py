"""Strict types know a probe and an attack from what only looks like one."""

import sys
from pathlib import Path

import pytest
from mypy import api

from support import example

ROOT = Path(__file__).parents[2]
MODULES = example.PACKAGE / "src" / "unerase_example"

# The room's own modules are checked by `make check`; what torch and its like export is not the question here.
CONFIGURATION = """
[mypy]
python_version = 3.11
strict = true
mypy_path = {root}/clients/python:{root}/services
explicit_package_bases = true
follow_imports = silent
[mypy-torch.*,transformers.*,diffusers.*,safetensors.*,ray.*,pydantic.*,PIL.*,opentelemetry.*,google.*,yaml.*,fsspec.*]
follow_imports = skip
ignore_missing_imports = true
"""


def problems(folder: Path, *files: Path) -> list[str]:
    """What mypy says of files under strict rules, a line each."""
    (folder / "mypy.ini").write_text(CONFIGURATION.format(root=ROOT))
    limit = sys.getrecursionlimit()
    try:
        said, failed, _ = api.run(
            ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache"), *map(str, files)]
        )
    finally:
        # mypy raises it, and tests of what is nested too deeply may come after.
        sys.setrecursionlimit(limit)
    assert not failed, failed
    return [line for line in said.splitlines() if ": error:" in line]


@pytest.mark.timeout(600)
def test_a_probe_and_an_attack_are_told_from_what_only_looks_like_one(tmp_path: Path) -> None:
    right = [MODULES / name for name in ("doubled_guidance.py", "repeated_prompt.py", "error_profile.py")]
    attack = MODULES / "prompt_offset.py"
    wrong = {
        # An attack's signature: a probe is handed parameters, not a workbench.
        "workbench.py": right[0]
        .read_text()
        .replace("parameters: Parameters", "parameters: Workbench")
        .replace(
            "from unerase_backend.probing.registry",
            "from unerase_backend.attack.workbench import Workbench\nfrom unerase_backend.probing.registry",
        ),
        "few.py": right[1].read_text().replace(", parameters: Parameters)", ")"),
        "result.py": right[2].read_text().replace(") -> list[Observation]:", ") -> Observation:"),
        "parameters.py": attack.read_text().replace(
            "workbench: Workbench) -> list", "workbench: dict[str, int]) -> list"
        ),
    }
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
    found = problems(tmp_path, *right, attack, *(tmp_path / name for name in wrong))
    refused = {Path(line.split(":")[0]).name for line in found if "has incompatible type" in line}
    assert refused == set(wrong), found
    assert not [line for line in found if "unerase_example" in line]
