"""The testbed's reference with guards, as a catalogue file gives them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Finished, Sampler

CPU = torch.device("cpu")

GuardsOf = Callable[..., Guards]
Run = Callable[..., list[Finished]]


def catalogue_of(folder: Path, *guards: dict[str, Any], **entry: Any) -> Catalogue:
    """The embedded catalogue and a file with the model "own/guarded"."""
    file = folder / "guards.yaml"
    file.write_text(
        yaml.safe_dump({"models": {"own/guarded": {"base": "testbed/reference", "guards": list(guards)} | entry}})
    )
    return Catalogue.load([str(file)])


@pytest.fixture
def guards_of(tmp_path: Path) -> GuardsOf:
    """Loads guards for the testbed's reference from what an entry of a file says."""

    def load(*guards: dict[str, Any]) -> Guards:
        catalogue = catalogue_of(tmp_path, *guards)
        return Guards.load(catalogue.guards("own/guarded"), catalogue.model_parts("own/guarded").folder, CPU)

    return load


@pytest.fixture(scope="session")
def sampler(model: DiffusionModel) -> Sampler:
    return Sampler(model, batch_rows=7, decode_batch=2)


@pytest.fixture
def run(sampler: Sampler) -> Run:
    """Runs trajectories together, all with the same guards."""

    def together(trajectories: list[Trajectory], guards: Guards, **options: Any) -> list[Finished]:
        return sampler.run(trajectories, given=[Given(guards=guards)] * len(trajectories), **options)

    return together
