"""An attack's step in smaller calls: the same step, up to rounding, and what a device without memory leads to."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unerase.internal.v1alpha1.attack_pb2 import AttackRequest, ListAttacksRequest
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Finding
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.attack.training import TrainedDenoiser
from unerase_backend.attack.workbench import Calls
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import ExhaustedError, PreconditionError

UnitOf = Callable[..., Unit]
BUDGETS: dict[str, dict[str, Any]] = {
    "textual-inversion": {"steps": 3, "batch_size": 6, "tokens": 1},
    "unlearn-diff-atk": {"timesteps": 1, "iterations": 2, "rows": 6},
    "p4d": {"starts": 1, "iterations": 2, "tokens": 2, "rows": 6},
    "relearning": {"steps": [2], "pictures": 4, "batch_size": 6},
}


Bench = tuple[Catalogue, ArtifactStore, Models]


@pytest.fixture(scope="module")
def bench(catalogue: Catalogue, store: ArtifactStore, models: Models) -> Bench:
    return catalogue, store, models


def engine_with(bench: Bench, rows: int, encode_batch: int = 2) -> AttackEngine:
    catalogue, store, models = bench
    settings = AttackSettings(artifacts="unused", gradient_rows=rows, encode_batch=encode_batch)
    return AttackEngine(catalogue, store, settings, models)


async def findings(engine: AttackEngine, unit: Unit) -> list[Finding]:
    return [
        response.event.finding
        async for response in engine.Attack(AttackRequest(unit=unit))
        if response.event.HasField("finding")
    ]


@pytest.mark.parametrize("name", BUDGETS)
async def test_smaller_calls_take_the_same_steps(name: str, bench: Bench, unit_of: UnitOf) -> None:
    unit = unit_of("reference", 3, evaluation=name, **BUDGETS[name])
    whole, parts = [await findings(engine_with(bench, rows), unit) for rows in (6, 4)]
    assert whole
    for one, other in zip(whole, parts, strict=True):
        assert list(other.losses) == pytest.approx(list(one.losses), rel=1e-4)
        assert other.token_ids == one.token_ids


def test_parts_hold_every_row_once() -> None:
    for rows in range(1, 30):
        for most in range(1, 30):
            parts = Calls(most, 1).parts(rows)
            assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
            assert all(part.stop - part.start <= most for part in parts)


async def test_an_attack_that_does_not_fit_goes_on_with_smaller_calls(
    bench: Bench, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def load(*arguments: Any, **named: Any) -> Any:
        model = load_model(*arguments, **named)
        model.denoiser.register_forward_pre_hook(refuse)
        return model

    monkeypatch.setattr("unerase_backend.attack.engine.load_model", load)
    engine = engine_with(bench, 6)
    unit = unit_of("reference", evaluation="textual-inversion", **BUDGETS["textual-inversion"])
    before = (await engine.ListAttacks(ListAttacksRequest())).numerics_profile
    with pytest.raises(ExhaustedError, match="with 6 rows in a call; from now on 3"):
        await findings(engine, unit)
    with pytest.raises(ExhaustedError, match="from now on 1"):
        await findings(engine, unit)
    assert await findings(engine, unit)
    assert (await engine.ListAttacks(ListAttacksRequest())).numerics_profile != before


async def test_the_smallest_calls_are_refused_with_what_to_do(
    bench: Bench, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 13750000000 bytes")

    monkeypatch.setattr("unerase_backend.attack.engine.load_model", fail)
    engine = engine_with(bench, 1, encode_batch=1)
    unit = unit_of("reference", evaluation="textual-inversion", **BUDGETS["textual-inversion"])
    with pytest.raises(PreconditionError, match="which is the least; free memory") as caught:
        await findings(engine, unit)
    assert caught.value.reason == "OUT_OF_MEMORY"


def test_training_in_16_bits_follows_float32(catalogue: Catalogue) -> None:
    """Steps far under what 16 bits can represent add up; without float32 weights they would all be lost."""
    unet = load_model(catalogue, "reference", torch.device("cpu"), torch.float32).denoiser.to(torch.bfloat16)
    start = unet.state_dict()["conv_in.weight"].float()
    rounded, exact = TrainedDenoiser(unet, 4e-6), TrainedDenoiser(copy.deepcopy(unet).float(), 4e-6)
    gradients = [torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) for weight in exact.weights]
    for _ in range(100):
        exact.step(gradients)
        rounded.step([gradient.to(torch.bfloat16) for gradient in gradients])
    for name, tensor in rounded.state().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), exact.state()[name], rtol=2**-8, atol=1e-6), name
    assert not torch.equal(rounded.state()["conv_in.weight"].float(), start)
