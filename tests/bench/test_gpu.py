"""The GPU's bench on a tiny architecture and the CPU: every part measures, and the audit's cost adds up."""

import json
from pathlib import Path

import pytest
import torch

from bench.gpu import cost as costing
from bench.gpu.__main__ import main
from bench.gpu.cost import cost, planned
from bench.gpu.parts import OUT_OF_MEMORY, PARTS, TOO_SLOW, Rig, by_size
from bench.gpu.sizes import SIZES, TINY_SIZES
from bench.gpu.timing import Clock, Timed
from unerase_backend.catalogue.backbone_kinds import BACKBONES

TINY = TINY_SIZES["sd-1.4"]


@pytest.mark.parametrize("model", SIZES)
def test_every_part_measures(tmp_path: Path, model: str) -> None:
    out = tmp_path / "build" / "gpu.json"
    assert main(["--tiny", "--model", model, "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert {*PARTS, "standard_audit", "device", "versions"} <= results.keys()
    assert [name for name in PARTS if "error" in results[name]] == []
    assert set(results["forward"]) == {str(rows) for rows in TINY.rows}
    assert results["forward"]["1"]["rows_a_second"] > 0
    assert results["sampler"]["2"]["pictures_a_second"] > 0
    assert results["diffusers"]["guided"]["seconds_a_picture"] > 0
    assert results["attacks"]["unlearn_diff_atk"]["1"]["seconds"] > 0
    assert results["neighbours"]["same_bits"]
    # Half precision, and not another computation.
    assert 0 < results["float32"]["mean_difference_over_spread"] < 0.05
    assert results["standard_audit"]["minutes"] > 0


PARAMETERS = {
    ("sd-1.4", "unet"): 859_520_964,
    ("sd-1.4", "text_encoder"): 123_060_480,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("sd-3", "transformer"): 2_028_328_000,
}
"""As published."""


@pytest.mark.parametrize(("model", "part"), PARAMETERS)
def test_the_sizes_are_those_of_the_published_models(model: str, part: str) -> None:
    size = SIZES[model]
    with torch.device("meta"):
        module = BACKBONES.all()[size.family].build(part, size.parts[part])
    assert sum(each.numel() for each in module.parameters()) == PARAMETERS[model, part]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--tiny" in capsys.readouterr().err


def test_the_audit_adds_up() -> None:
    """A tenth of a second for each row of anything: the minutes are those of the rows."""
    row = 0.1
    rig = Rig(None, TINY, None)  # type: ignore[arg-type]
    rig.sampler_rows, rig.finishing_seconds = {96: 1 / row}, 0.0
    rig.forward, rig.attacked = {1: Timed(row, 1, None)}, {1: Timed(row, 1, None), 24: Timed(24 * row, 1, None)}
    rig.inverted = {4: Timed(4 * row, 1, None)}
    rig.published = {"guided": 2 * costing.STEPS * row, "unguided": costing.STEPS * row}
    plan = planned()
    found = cost(rig, plan)
    # 48 cases fill calls of 24 rows, so that nothing of the cost's rows pads.
    assert found["minutes"] == pytest.approx(plan.cost.rows * row / 60, abs=0.01)
    stated = {each.evaluation: each.rows * row / 60 for each in plan.cost.evaluations}
    assert found["minutes_by_evaluation"] == pytest.approx(stated, abs=0.01)
    # Published code has no pictures of its own for `alternatives`; a beginning counts a few steps more here.
    assert found["published_loop_minutes"] == pytest.approx(found["minutes"] - stated["alternatives"], rel=0.01)
    rig.published.clear()
    with pytest.raises(ValueError, match="must have been measured"):
        cost(rig, plan)


def test_sizes_end_where_memory_or_time_does() -> None:
    def too_large(rows: int, _: float) -> Timed:
        if rows > 2:
            raise torch.OutOfMemoryError
        return Timed(0.01 * rows, 1, None)

    made = by_size((1, 2, 4, 8), 8.0, too_large)
    assert list(made.found) == [1, 2]
    assert made.figures((2, 4))["4"] == OUT_OF_MEMORY
    slow = by_size((1, 2, 4, 8), 8.0, lambda rows, _: Timed(0.2 * rows, 1, None))
    assert list(slow.found) == [1, 2]
    assert slow.figures((8,))["8"] == TOO_SLOW
    # However slow, the first ones are measured.
    assert list(by_size((1, 2, 4), 0.0, lambda rows, _: Timed(1.0, 1, None), least=2).found) == [1, 2]


def test_a_share_is_never_more_than_what_is_left() -> None:
    assert Clock(100.0).share(7.0) == 7.0
    assert Clock(0.0).share(7.0) == 0.0
