"""What the tests of the import share."""

import pytest

from support.importing import without_process


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what an import makes of a file; others have the process, with its isolation and its ends."""
    without_process(monkeypatch)
