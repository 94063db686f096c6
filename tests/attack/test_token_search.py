"""What holds of P4D and of UnlearnDiffAtk alike: cases are searched each by itself, many in one call of the UNet."""

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from attack.conftest import attacked
from attack.counting import counted, unit_store
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    MODEL_ROLE_CONTROL,
    SAMPLE_STATUS_UNSCORED,
)
from unerase_backend.attack.attacks import p4d, unlearn_diff_atk
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.catalogue import Catalogue
from unerase_backend.evaluation.models import Models

UnitOf = Callable[..., Unit]
P4D = {"evaluation": "p4d", "starts": 2, "iterations": 3, "rows": 3}
UNLEARN_DIFF_ATK = {"evaluation": "unlearn-diff-atk", "timesteps": 2, "iterations": 3, "rows": 3}


@pytest.fixture(params=[P4D, UNLEARN_DIFF_ATK], ids=["p4d", "unlearn-diff-atk"])
def small(request: pytest.FixtureRequest) -> dict[str, object]:
    """An attack with a small budget."""
    return request.param


async def test_a_case_does_not_depend_on_which_others_share_the_unit(
    engine: AttackEngine, unit_of: UnitOf, small: dict[str, object]
) -> None:
    unit = unit_of("never", cases=5, **small)
    observations, findings, _ = await attacked(engine, unit)
    del unit.cases[0], unit.cases[1:]
    alone, (finding,), _ = await attacked(engine, unit)
    assert alone == [observation for observation in observations if observation.case_index == 1]
    assert finding == findings[1]
    assert finding.losses


async def test_the_same_unit_finds_the_same_whatever_its_role(
    engine: AttackEngine, unit_of: UnitOf, small: dict[str, object]
) -> None:
    unit = unit_of("never", **small)
    first = await attacked(engine, unit)
    assert await attacked(engine, unit) == first
    unit.role = MODEL_ROLE_CONTROL
    _, (finding,), _ = await attacked(engine, unit)
    assert finding.token_ids == first[1][0].token_ids
    assert finding.losses == first[1][0].losses
    _, (other,), _ = await attacked(engine, unit_of("never", seed_base=2, **small))
    assert other.losses != finding.losses


@pytest.mark.parametrize(("module", "small", "steps"), [(p4d, P4D, 4), (unlearn_diff_atk, UNLEARN_DIFF_ATK, 1)])
async def test_one_case_that_answers_nan_leaves_the_others_alone(
    engine: AttackEngine,
    unit_of: UnitOf,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    small: dict[str, object],
    steps: int,
) -> None:
    """The case has one draw before the step after `steps`, at which its gradient is not finite."""
    unit = unit_of("never", cases=3, **small)
    whole, _, _ = await attacked(engine, unit)
    right = module.gradients
    calls = iter(range(100))

    def broken(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        losses, gradient = right(*arguments)
        if next(calls) == steps:
            gradient[2] = math.nan
        return losses, gradient

    monkeypatch.setattr(module, "gradients", broken)
    seen, findings, _ = await attacked(engine, unit)
    assert [o for o in seen if o.case_index < 2] == [o for o in whole if o.case_index < 2]
    first, failed = (observation for observation in seen if observation.case_index == 2)
    assert first == next(observation for observation in whole if observation.case_index == 2)
    assert (failed.variant, failed.status) == (1, SAMPLE_STATUS_UNSCORED)
    assert failed.reason == f"the gradient was not finite at step {steps + 1}"
    assert findings[2].steps == steps


def test_the_parameters_of_the_search_are_described_once() -> None:
    described = [
        {parameter.name: parameter for parameter in ATTACKS.all()[name].description.parameters}
        for name in ("p4d", "unlearn-diff-atk")
    ]
    first, second = described
    assert first["rows"] == second["rows"]
    for parameters, optimiser, rate, most in ((first, "AdamW", 0.1, 10.0), (second, "Adam", 0.01, 1.0)):
        assert parameters["learning_rate"].default_value.number_value == rate
        assert (parameters["learning_rate"].minimum, parameters["learning_rate"].maximum) == (1e-6, most)
        assert parameters["weight_decay"].description == f"{optimiser}'s weight decay."


STEPS = 6
"""Of the small budgets, all turns together; the report at the end is counted as one more."""


async def test_a_deployed_model_is_searched_once_with_its_open_weights(
    catalogue: Catalogue, models: Models, unit_of: UnitOf, small: dict[str, object], tmp_path: Path
) -> None:
    store = unit_store(tmp_path, catalogue)
    unit = unit_of("never", cases=2, **small)
    plain = await counted(catalogue, store, models, unit)
    assert plain[0] == STEPS + 1
    # A unit without access shares nothing.
    assert await counted(catalogue, store, models, unit) == plain
    for access, searched in ((MODEL_ACCESS_OPEN_WEIGHTS, 1), (MODEL_ACCESS_DEPLOYED, 0), (MODEL_ACCESS_DEPLOYED, 0)):
        unit.access, unit.id, unit.guard_rows = access, f"{unit.id}@{access}", access
        assert await counted(catalogue, store, models, unit) == (searched * STEPS + 1, *plain[1:])
    unit.seed_base += 1
    assert (await counted(catalogue, store, models, unit))[0] == STEPS + 1


async def test_a_search_goes_on_where_the_other_ended(
    catalogue: Catalogue, models: Models, unit_of: UnitOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two turns the first is taken over; the second has to be made, from where the first led."""
    store = unit_store(tmp_path, catalogue)
    unit = unit_of("never", cases=2, **UNLEARN_DIFF_ATK)
    _, *plain = await counted(catalogue, store, models, unit)
    right = unlearn_diff_atk.gradients
    calls = iter(range(100))

    def ending(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        if next(calls) == 4:
            raise ValueError("the first unit ends in its second turn")
        return right(*arguments)

    unit.access = MODEL_ACCESS_OPEN_WEIGHTS
    monkeypatch.setattr(unlearn_diff_atk, "gradients", ending)
    with pytest.raises(ValueError, match="second turn"):
        await counted(catalogue, store, models, unit)
    monkeypatch.setattr(unlearn_diff_atk, "gradients", right)
    unit.access = MODEL_ACCESS_DEPLOYED
    steps, *found = await counted(catalogue, store, models, unit)
    assert found == plain
    assert steps == 3 + 1


async def test_a_case_that_only_one_of_the_two_has_left_is_searched_alone(
    catalogue: Catalogue, models: Models, unit_of: UnitOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the open weights the first case succeeds in the first turn, and a guard withholds its picture.

    In the second turn the deployed model takes over what was found for the second case. It takes both turns' steps of
    the first case: those that it had taken over, to get to where they led, and those that nobody has taken.
    """
    unit = unit_of("never", cases=2, **UNLEARN_DIFF_ATK | {"rows": 1, "stop_at_success": 1})

    def seeing(detected: bool) -> Models:
        async def generate(request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
            async for response in models.generate_stream(request):
                mine = request.trajectories[response.index].latent_seed == unit.cases[0].latent_seed
                searched = request.trajectories[response.index].conditioning.HasField("token_ids")
                if response.sample.judgements:
                    response.sample.judgements[0].detected = detected and mine and searched
                yield response

        return replace(models, generate_stream=generate)

    store = unit_store(tmp_path, catalogue)
    plain = {seen: await counted(catalogue, store, seeing(seen), unit) for seen in (False, True)}
    right, calls = unlearn_diff_atk.gradients, []

    def counting(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(arguments)
        return right(*arguments)

    monkeypatch.setattr(unlearn_diff_atk, "gradients", counting)
    made = []
    for access, seen in ((MODEL_ACCESS_OPEN_WEIGHTS, True), (MODEL_ACCESS_DEPLOYED, False)):
        unit.access, before = access, len(calls)
        steps, *found = await counted(catalogue, store, seeing(seen), unit)
        assert found == list(plain[seen][1:])
        made.append((steps, len(calls) - before))
    # Two cases in three steps and one in three; then one case in three steps behind and three more.
    assert made == [(6 + 1, 6 + 3), (3 + 1, 3 + 3)]
