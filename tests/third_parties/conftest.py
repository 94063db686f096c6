"""The example package, installed as a user would, in a folder of its own."""

import os
from pathlib import Path

import pytest

from support import example


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds the package, and the tests' own modules."""
    site = example.install(tmp_path_factory.mktemp("third-party") / "site")
    paths = [str(site), str(Path(example.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A catalogue file with a judge of the package's kind."""
    return example.write_catalogue(tmp_path_factory.mktemp("catalogue"), environment)
