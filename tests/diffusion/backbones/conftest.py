"""Small pipelines of all families, one after the other."""

import pytest

from support.tiny_models import TinyModel, saved
from support.tiny_pipelines import PIPELINES


@pytest.fixture(scope="session", params=sorted(PIPELINES))
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A small pipeline of a family."""
    return saved(request.param, tmp_path_factory.mktemp(request.param))
