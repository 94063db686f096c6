"""What takes seconds to import is imported when a model is looked at, and not when a process starts."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from unerase_backend.diffusion.libraries import library_class


@pytest.mark.parametrize("room", ["generation", "attack", "classification"])
def test_a_room_starts_without_the_libraries(room: str) -> None:
    program = f"import sys, unerase_backend.{room}.engine; print(*{{'diffusers', 'transformers'}} & {{*sys.modules}})"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.split() == []


def test_threads_get_the_same_classes() -> None:
    with ThreadPoolExecutor(8) as threads:
        first, *others = threads.map(lambda _: library_class("diffusers", "UNet2DConditionModel"), range(8))
    assert all(other is first for other in others)
    assert first.__name__ == "UNet2DConditionModel"
