"""As many replicas as a large machine gets: Ray reserves a share of a CPU for each, however few the machine has."""

from pathlib import Path

import pytest

from support.serving import serving

pytestmark = pytest.mark.backends


def test_sixteen_replicas_of_generation_start(tmp_path: Path) -> None:
    with serving(tmp_path, generation_replicas=16) as backend:
        assert len(backend.replicas("generation")) == 16
