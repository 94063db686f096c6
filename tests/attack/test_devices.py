"""Attacks on a device of its own memory: nothing mixes memories, and the losses are the CPU's up to rounding.

Attention with gradients takes another kernel where the device is not the CPU.
"""

from pathlib import Path
from typing import Any

import pytest

from attack.counting import unit_store
from attack.test_calls import BUDGETS, UnitOf, engine_with, findings
from support.separate_memory import loading_onto_device, separate_memory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore

MORE: dict[str, dict[str, Any]] = {
    "ring-a-bell": {"tokens": 2, "population": 4, "generations": 2},
}


@pytest.mark.parametrize("name", BUDGETS | MORE)
async def test_an_attack_finds_the_same_there(
    name: str,
    catalogue: Catalogue,
    store: ArtifactStore,
    models: Models,
    unit_of: UnitOf,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bench = (catalogue, store, models)
    unit = unit_of("reference", 2, evaluation=name, seed_base=5, **(BUDGETS | MORE)[name])
    expected = await findings(engine_with(bench, 6), unit)
    monkeypatch.setattr("unerase_backend.attack.engine.load_model", loading_onto_device(load_model))
    # A store of its own, so that nothing is taken over.
    engine = engine_with((catalogue, unit_store(tmp_path, catalogue), models), 6)
    inside = separate_memory()
    # What torch may see is set by thread, and the attack runs in its own.
    engine._thread.submit(inside.__enter__).result()
    try:
        found = await findings(engine, unit)
    finally:
        engine._thread.submit(inside.__exit__, None, None, None).result()
    assert expected
    for one, other in zip(expected, found, strict=True):
        assert other.token_ids == one.token_ids
        assert list(other.losses) == pytest.approx(list(one.losses), rel=1e-4)
