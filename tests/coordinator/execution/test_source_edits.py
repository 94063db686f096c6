"""Whoever edits code that computes gets new results from the same data folder, and no other edit costs any."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unerase_backend

TESTS = Path(__file__).parents[2]

# Runs two small units unless their results were kept, as the coordinator does. Prints which units were found, and how
# many trajectories were found or made.
RUN = """
import asyncio, json, sys
from pathlib import Path

from support.backend import evaluations, local_backend
from unerase.internal.v1alpha1.generation_pb2 import DescribeGenerationRequest
from unerase.internal.v1alpha1.units_pb2 import UnitResult
from unerase_backend.coordinator.execution import unit_cache
from unerase_backend.generation.metrics import GenerationMetrics

UNITS = {"standard-prompt": {}, "unlearn-diff-atk": {"timesteps": 1, "iterations": 1}}


class Counts(GenerationMetrics):
    made = found = 0

    def finished(self, pictures, *, cached):
        self.found += pictures * cached
        self.made += pictures * (not cached)


async def main(folder):
    counts, units = Counts(), {}
    async with local_backend(Path(folder), metrics=counts) as local:
        profile = (await local.generation.DescribeGeneration(DescribeGenerationRequest())).numerics_profile
        for name, parameters in UNITS.items():
            unit = local.unit(name, cases=1, steps=2, parameters=parameters)
            key = unit_cache.unit_key(unit, evaluations()[name].description, local.catalogue, profile)
            units[name] = unit_cache.find(local.store, key) is not None
            if not units[name]:
                result = UnitResult()
                for event in await local.run(unit):
                    if event.HasField("observation"):
                        result.observations.append(event.observation)
                unit_cache.keep(local.store, key, result)
    print(json.dumps({"units": units, "made": counts.made, "found": counts.found}))


asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the backend's package, its data folder, and what its first run said."""
    folder = tmp_path_factory.mktemp("copy")
    package = Path(unerase_backend.__file__).parent
    shutil.copytree(package, folder / "unerase_backend", ignore=shutil.ignore_patterns("__pycache__"))
    said = run(folder, folder / "data")
    assert not any(said["units"].values())
    assert said["made"] > 0
    (folder / "first.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def first(services: Path) -> dict[str, Any]:
    return dict(json.loads((services / "first.json").read_text()))


@pytest.fixture
def data(services: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(services / "data", tmp_path / "data"))


def run(services: Path, data: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(services), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(data)],
        env=environment,
        cwd=data.parent,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


def run_edited(services: Path, data: Path, *edited: str) -> dict[str, Any]:
    """Run with a line more in each of the files, and put them back."""
    files = [services / "unerase_backend" / name for name in edited]
    contents = [file.read_text() for file in files]
    try:
        for file, content in zip(files, contents, strict=True):
            file.write_text(f"{content}\n# edited\n")
        return run(services, data)
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_text(content)


@pytest.mark.parametrize("edited", ["attack/prompts.py", "classification/judges/classifier.py"])
def test_an_edit_behind_an_evaluation_runs_units_again_on_the_same_pictures(
    services: Path, data: Path, first: dict[str, Any], edited: str
) -> None:
    said = run_edited(services, data, edited)
    assert said == first | {"made": 0, "found": first["made"] + first["found"]}


def test_an_edit_of_the_sampler_makes_every_picture_again(services: Path, data: Path, first: dict[str, Any]) -> None:
    assert run_edited(services, data, "diffusion/sampler.py") == first


def test_an_edit_of_what_computes_nothing_costs_nothing(services: Path, data: Path) -> None:
    said = run_edited(services, data, "report/html.py", "verdict/decision.py", "coordinator/api/server.py")
    assert all(said["units"].values())
    assert (said["made"], said["found"]) == (0, 0)
