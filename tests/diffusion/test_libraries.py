"""What takes seconds to import is imported when a model is looked at, and not when a process starts."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from unerase_backend.diffusion.libraries import library_class

ROOMS = ("generation", "attack", "classification")


def test_rooms_start_without_the_libraries() -> None:
    """One after the other in one process, whose modules are those of all of them."""
    program = f"""
import importlib, sys
for room in {ROOMS}:
    importlib.import_module(f"unerase_backend.{{room}}.engine")
    print(room, *sorted({{"diffusers", "transformers"}} & {{*sys.modules}}))
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == [*ROOMS]


def test_threads_get_the_same_classes() -> None:
    with ThreadPoolExecutor(8) as threads:
        first, *others = threads.map(lambda _: library_class("diffusers", "UNet2DConditionModel"), range(8))
    assert all(other is first for other in others)
    assert first.__name__ == "UNet2DConditionModel"
