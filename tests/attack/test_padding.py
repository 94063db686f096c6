"""How many rows a call has: never so few that a bit changes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attack.conftest import attacked
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase_backend.attack.attacks import p4d, unlearn_diff_atk
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.padding import Padding

UnitOf = Callable[..., Unit]


def test_fewer_rows_are_taken_once_they_are_known_to_be_alike() -> None:
    seen: list[int] = []

    def compute(rows: int) -> tuple[Tensor, Tensor]:
        seen.append(rows)
        return torch.arange(rows), torch.arange(2 * rows).view(rows, 2)

    padding = Padding()
    for needed in (5, 5, 7, 8, 9, 24, 3, 2):
        indices, pairs = padding.call(compute, needed, 24)
        assert indices.tolist() == list(range(needed))
        assert torch.equal(pairs, torch.arange(2 * needed).view(needed, 2))
    assert seen == [24, 8, 8, 8, 8, 24, 12, 24, 24, 4, 4]
    padding.call(compute, 3, 4)
    padding.call(compute, 5, 6)
    assert seen[11:] == [4, 6]


@pytest.mark.parametrize("different", [1e-6, float("nan")])
def test_one_bit_that_differs_keeps_every_call_full(different: float) -> None:
    seen: list[int] = []

    def compute(rows: int) -> tuple[Tensor, Tensor]:
        seen.append(rows)
        return torch.ones(rows), torch.full((rows, 2), 1.0 if rows == 24 else 1.0 + different)

    padding = Padding()
    for _ in range(3):
        assert torch.equal(padding.call(compute, 9, 24)[1], torch.ones((9, 2)))
    assert seen == [24, 12, 24, 24]


@pytest.mark.parametrize(
    ("module", "small"), [(p4d, {"starts": 1}), (unlearn_diff_atk, {"timesteps": 1})], ids=["p4d", "unlearn-diff-atk"]
)
async def test_a_case_has_the_bits_of_a_full_call(
    engine: AttackEngine,
    unit_of: UnitOf,
    module: object,
    small: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether its calls may have fewer rows here or not."""
    whole = module.gradients
    rows: list[int] = []

    def counted(model: object, prompts: list[object], *rest: object) -> tuple[Tensor, Tensor]:
        rows.append(len(prompts))
        return whole(model, prompts, *rest)

    monkeypatch.setattr(module, "gradients", counted)
    name = next(iter(module.__name__.rsplit(".", 1)[1:])).replace("_", "-")
    unit = unit_of("never", cases=5, evaluation=name, iterations=4, rows=16, **small)
    found = await attacked(engine, unit)
    assert rows in ([16, 8, 8, 8, 8], [16, 8, 16, 16, 16])
    monkeypatch.setattr(Padding, "call", lambda _, compute, needed, full: tuple(t[:needed] for t in compute(full)))
    assert await attacked(engine, unit) == found
    assert rows[5:] == [16] * 4
