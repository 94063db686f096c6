"""Textual inversion and relearning search once for a deployed model and for its weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

from attack.counting import counted, unit_store
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import MODEL_ACCESS_DEPLOYED, MODEL_ACCESS_OPEN_WEIGHTS
from unerase_backend.catalogue import Catalogue
from unerase_backend.evaluation.models import Models

UnitOf = Callable[..., Unit]
BUDGETS = {
    "textual-inversion": ({"steps": 3, "batch_size": 2}, 3),
    "relearning": ({"steps": [1, 2], "batch_size": 2, "pictures": 2}, 2),
}


@pytest.mark.parametrize("name", sorted(BUDGETS))
async def test_the_second_access_takes_over_what_the_first_found(
    catalogue: Catalogue, models: Models, unit_of: UnitOf, name: str, tmp_path: Path
) -> None:
    parameters, steps = BUDGETS[name]
    store = unit_store(tmp_path, catalogue)
    unit = unit_of("never", cases=2, evaluation=name, **parameters)
    plain = await counted(catalogue, store, models, unit)
    assert plain[0] == steps
    assert all(finding.losses for finding in plain[2])
    # A unit without access shares nothing.
    assert await counted(catalogue, store, models, unit) == plain
    for access, searched in ((MODEL_ACCESS_OPEN_WEIGHTS, 1), (MODEL_ACCESS_DEPLOYED, 0)):
        unit.access, unit.id = access, f"{unit.id}@{access}"
        unit.search_shared = access == MODEL_ACCESS_DEPLOYED
        assert await counted(catalogue, store, models, unit) == (searched * steps, *plain[1:])
    unit.seed_base += 1
    assert (await counted(catalogue, store, models, unit))[0] == steps


async def test_weights_that_are_lost_are_trained_again(
    catalogue: Catalogue, models: Models, unit_of: UnitOf, tmp_path: Path
) -> None:
    parameters, steps = BUDGETS["relearning"]
    store = unit_store(tmp_path, catalogue)
    unit = unit_of("never", evaluation="relearning", **parameters)
    unit.access = MODEL_ACCESS_OPEN_WEIGHTS
    first = await counted(catalogue, store, models, unit)
    store.remove(first[2][-1].weights_digest)
    unit.access = MODEL_ACCESS_DEPLOYED
    again = await counted(catalogue, store, models, unit)
    assert again == first
    assert again[0] == steps
