"""Whoever edits code that computes gets new results from the same data folder, and no other edit costs any."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
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

# Runs RUN in a child for each data folder that it reads. What nobody edits here is imported once, before; of the
# backend nothing is.
RUNNER = """
import os, sys

import diffusers, grpc, pydantic, ray.serve, scipy.stats, sqlalchemy, torch, transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPModel, CLIPTextModel, CLIPTokenizer

assert not any(name.startswith("unerase") for name in sys.modules)
code = compile(sys.argv[1], "RUN", "exec")
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["RUN", line.strip()]
        exec(code, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass
class Services:
    """A copy of the backend's package, its data folder, and what its first run said."""

    folder: Path
    runner: subprocess.Popen[str]
    first: dict[str, Any] = field(default_factory=dict)

    def run(self, data: Path) -> dict[str, Any]:
        """Run on a data folder, as a backend that is started now."""
        assert self.runner.stdin is not None
        assert self.runner.stdout is not None
        print(data, file=self.runner.stdin, flush=True)
        said = self.runner.stdout.readline()
        assert said.startswith("{"), (self.folder / "log").read_text()
        assert self.runner.stdout.readline() == "0\n", (self.folder / "log").read_text()
        return dict(json.loads(said))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("copy")
    package = Path(unerase_backend.__file__).parent
    shutil.copytree(package, folder / "unerase_backend", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("w") as log:
        runner = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUNNER, RUN],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with runner:
        services = Services(folder, runner)
        services.first = services.run(folder / "data")
        assert not any(services.first["units"].values())
        assert services.first["made"] > 0
        yield services
        runner.kill()


@pytest.fixture
def first(services: Services) -> dict[str, Any]:
    return services.first


@pytest.fixture
def data(services: Services, tmp_path: Path) -> Path:
    return Path(shutil.copytree(services.folder / "data", tmp_path / "data"))


def run_edited(services: Services, data: Path, *edited: str) -> dict[str, Any]:
    """Run with a line more in each of the files, and put them back."""
    files = [services.folder / "unerase_backend" / name for name in edited]
    contents = [file.read_text() for file in files]
    try:
        for file, content in zip(files, contents, strict=True):
            file.write_text(f"{content}\n# edited\n")
        return services.run(data)
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_text(content)


@pytest.mark.parametrize("edited", ["attack/prompts.py", "classification/judges/classifier.py"])
def test_an_edit_behind_an_evaluation_runs_units_again_on_the_same_pictures(
    services: Services, data: Path, first: dict[str, Any], edited: str
) -> None:
    said = run_edited(services, data, edited)
    assert said == first | {"made": 0, "found": first["made"] + first["found"]}


def test_an_edit_of_the_sampler_makes_every_picture_again(
    services: Services, data: Path, first: dict[str, Any]
) -> None:
    assert run_edited(services, data, "diffusion/sampler.py") == first


def test_an_edit_of_what_computes_nothing_costs_nothing(services: Services, data: Path) -> None:
    said = run_edited(services, data, "report/html.py", "verdict/decision.py", "coordinator/api/server.py")
    assert all(said["units"].values())
    assert (said["made"], said["found"]) == (0, 0)
