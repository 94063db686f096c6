"""How `unerase serve` computes: what it chooses fits, and what a user sets stands."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from support.small_files import write_pipeline
from unerase_backend.catalogue import Catalogue
from unerase_backend.compute_plan import (
    DECODES,
    GRADIENT_CHOICES,
    ROWS,
    ComputePlan,
    Load,
    Shapes,
    load_of,
    other_bytes,
    plan_cpu,
    plan_gpus,
    plan_of,
    replica_bytes,
)
from unerase_backend.diffusion.memory import ModelSize
from unerase_backend.diffusion.row_memory import row_memory
from unerase_backend.machine import Card, Cores
from unerase_backend.serve_settings import ServeSettings

GB = 10**9
UNET = {"block_out_channels": [320, 640, 1280, 1280]}


def load_like(name: str, denoiser: int, text: tuple[int, ...], side: int) -> Load:
    row = row_memory("UNet2DConditionModel", UNET, side, 0)
    return Load(name, ModelSize(denoiser, text, 83_653_863, row, 128, (8 * side) ** 2), 700_000_000)


SD_14 = load_like("sd/1.4", 859_520_964, (123_060_480,), 64)

TESTBED = load_of(Catalogue.load())

SD_21 = load_like("sd/2.1", 865_910_724, (340_387_840,), 96)

WITH_T5 = load_like("own/t5", 859_520_964, (123_060_480, 4_762_310_656), 64)


def needs(load: Load, plan: ComputePlan) -> dict[str, float]:
    """The bytes of each room by the formulas, written out here."""
    size, shapes = load.size, plan.shapes
    weights = size.weight_bytes(plan.dtype)
    return {
        "generation": shapes.models_in_memory * weights
        + shapes.batch_rows * size.row_bytes(plan.dtype)
        + shapes.decode_batch * size.decoded_bytes(),
        "attack": shapes.models_kept * weights + shapes.gradient_rows * size.gradient_row_bytes(plan.dtype),
        "judges": load.judge_bytes,
    }


@given(free=st.integers(16 * GB, 200 * GB), dtype=st.sampled_from(["bfloat16", "float16"]))
def test_every_room_fits_into_its_share_of_one_card(free: int, dtype: str) -> None:
    plan = plan_gpus(SD_14, dtype, [Card("a card", free)])
    shares = {"generation": plan.generation_share, "attack": plan.attack_share, "judges": plan.judge_share}
    assert sum(shares.values()) <= 1
    for room, needed in needs(SD_14, plan).items():
        assert needed <= shares[room] * free, room
    assert plan.shapes.batch_rows in ROWS
    assert plan.shapes.decode_batch in DECODES
    assert plan.shapes.gradient_rows in GRADIENT_CHOICES


@given(free=st.integers(16 * GB, 150 * GB), more=st.integers(0, 50 * GB))
def test_a_larger_card_takes_no_fewer_rows_with_as_many_models(free: int, more: int) -> None:
    small, large = (plan_gpus(SD_14, "bfloat16", [Card("a card", each)]).shapes for each in (free, free + more))
    if small.models_in_memory == large.models_in_memory:
        assert large.batch_rows >= small.batch_rows or large.decode_batch > small.decode_batch
    assert large.models_in_memory >= small.models_in_memory


def test_the_cards_that_people_have() -> None:
    """The figures of docs/real-models.md."""
    small = plan_gpus(SD_14, "bfloat16", [Card("a card of 24 GB", 24 * GB)])
    assert small.shapes == Shapes(24, 1, 3, 4, 2)
    large = plan_gpus(SD_14, "bfloat16", [Card("a card of 80 GB", 80 * GB)])
    assert large.shapes == Shapes(96, 8, 4, 24, 4)
    assert (small.generation_share, small.attack_share, small.judge_share) == (0.49, 0.4, 0.1)
    four = plan_gpus(SD_14, "bfloat16", [Card("a card of 24 GB", 24 * GB)] * 4)
    assert (four.shapes, four.attack_share, four.judge_share) == (Shapes(96, 4, 4, 12, 4), 0.9, 0.1)
    for free, shapes in ((24, Shapes(12, 1, 2, 1, 2)), (80, Shapes(64, 4, 4, 8, 4))):
        assert plan_gpus(SD_21, "bfloat16", [Card("a card", free * GB)]).shapes == shapes


def test_a_large_text_encoder_visits_generation_and_stays_in_attack() -> None:
    """Generation has it for encoding alone, while no row is computed; attack has one for each model."""
    plan = plan_gpus(WITH_T5, "bfloat16", [Card("a card", 80 * GB)])
    without = plan_gpus(SD_14, "bfloat16", [Card("a card", 80 * GB)])
    assert replace(plan.shapes, gradient_rows=24, models_kept=4) == without.shapes
    size, attack = WITH_T5.size, plan.attack_share * 80 * GB
    kept = plan.shapes.models_kept * size.weight_bytes("bfloat16")
    assert kept + plan.shapes.gradient_rows * size.gradient_row_bytes("bfloat16") <= attack
    assert plan.shapes.models_kept * size.held_bytes("bfloat16") < attack - kept
    with pytest.raises(ValueError, match=r"4885 million in its text encoders; .* generation can have"):
        plan_gpus(WITH_T5, "bfloat16", [Card("a card", 24 * GB)], given={"models_in_memory": 1, "models_kept": 1})


def test_several_cards_are_divided_between_generation_and_the_rest() -> None:
    plan = plan_gpus(SD_14, "bfloat16", [Card("a card", 24 * GB)] * 4)
    assert (plan.generation_replicas, plan.generation_share) == (3, 1.0)
    assert plan.attack_share + plan.judge_share <= 1


def test_a_model_that_cannot_fit_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"'sd/1.4'.*do not fit into the .* GB that generation can have; free memory"):
        plan_gpus(SD_14, "float32", [Card("a card", 10 * GB)])


def test_a_cpu_takes_the_shapes_of_the_testbed_for_small_models_and_few_rows_for_large_ones() -> None:
    assert plan_cpu(TESTBED, "float32", 4 * GB).shapes == Shapes()
    assert plan_cpu(None, "float32", 4 * GB).shapes == Shapes()
    assert plan_cpu(SD_14, "bfloat16", 22 * GB).shapes == Shapes(4, 1, 3, 1, 2)


def test_the_largest_model_is_one_that_can_be_used(tmp_path: Path) -> None:
    for name in ("large", "xl"):
        folder = write_pipeline(tmp_path / name, name)
        size = 3_000_000 if name == "large" else 4_000_000
        save_file({"conv_in.weight": np.zeros(size, np.float16)}, next((folder / "unet").glob("*.safetensors")))
    index = tmp_path / "xl" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "StableCascadeCombinedPipeline"}))
    file = tmp_path / "own.yaml"
    models = {f"own/{name}": {"pipeline": name, "resolution": 32} for name in ("large", "xl")}
    file.write_text(yaml.safe_dump({"models": models}))
    load = load_of(Catalogue.load([str(file)]))
    assert load is not None
    assert (load.model, load.size.denoiser_parameters) == ("own/large", 3_000_000)


def test_judges_take_the_memory_of_their_files(tmp_path: Path) -> None:
    """Safetensors count in float32, a detector by its file, and a third party's judge by all of its folder."""
    folder = tmp_path / "judge"
    folder.mkdir()
    save_file({"weight": np.zeros(1000, np.float16)}, folder / "model.safetensors")
    (folder / "other.onnx").write_bytes(bytes(5000))
    (folder / "detector.onnx").write_bytes(bytes(3000))
    in_files = sum(path.stat().st_size for path in folder.iterdir())
    options = {"file": "detector.onnx", "sha256": "0" * 64, "threshold": 0.5}
    before = load_of(Catalogue.load())
    assert before is not None
    for kind, options_given, expected in (
        ("clip", {}, 4000),
        ("classifier", {}, 4000),
        ("detector", options, 3000),
        ("their-own", {}, in_files),
    ):
        file = tmp_path / f"{kind}.yaml"
        judges = {f"own/{kind}": {"kind": kind, "path": "judge", "options": options_given}}
        file.write_text(yaml.safe_dump({"judges": judges}))
        load = load_of(Catalogue.load([str(file)]))
        assert load is not None
        assert load.judge_bytes - before.judge_bytes == expected, kind


def test_a_judge_that_is_wrong_does_not_stop_a_plan(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"judges": {"own/d": {"kind": "detector", "path": "judge"}}}))
    assert load_of(Catalogue.load([str(file)])) == load_of(Catalogue.load())


@pytest.mark.parametrize("name", [field.name for field in fields(Shapes)])
def test_what_is_given_stands(name: str) -> None:
    for plan in (
        plan_gpus(SD_14, "bfloat16", [Card("a card", 24 * GB)], given={name: 2}),
        plan_cpu(SD_14, "bfloat16", 22 * GB, given={name: 2}),
        plan_cpu(None, "bfloat16", 22 * GB, given={name: 2}),
    ):
        assert getattr(plan.shapes, name) == 2


def test_the_lines_say_every_choice() -> None:
    said = "\n".join(plan_gpus(SD_14, "bfloat16", [Card("a card", 24 * GB)]).lines())
    for word in ("bfloat16", "a card with 24.0 GB free", "'sd/1.4'", "24 rows", "4 rows with gradients", "of a GPU"):
        assert word in said


@given(
    cores=st.integers(1, 256),
    free=st.integers(3 * GB, 2000 * GB),
    replicas=st.none() | st.integers(1, 4),
    large=st.booleans(),
)
def test_the_models_of_all_replicas_fit_into_the_memory_of_a_cpu(
    cores: int, free: int, replicas: int | None, large: bool
) -> None:
    """More than one replica starts only where every process, with all its models, has its memory; if none is set."""
    load = SD_14 if large else TESTBED
    assert load is not None
    try:
        plan = plan_cpu(load, "float32", free, replicas, there=Cores(cores))
    except ValueError:
        # Even one process of the largest model, or those that are set, do not fit.
        assert large
        return
    if replicas is not None:
        assert plan.generation_replicas == replicas
    elif plan.generation_replicas > 1:
        assert plan.generation_replicas * plan.generation_threads <= cores
        everything = plan.generation_replicas * needs(load, plan)["generation"] + needs(load, plan)["attack"]
        assert everything + load.judge_bytes <= free


@given(cores=st.integers(1, 64), more=st.integers(0, 64), free=st.integers(1 * GB, 200 * GB))
def test_more_cores_and_more_memory_never_make_fewer_pictures_at_once(cores: int, more: int, free: int) -> None:
    few, many = (plan_cpu(TESTBED, "float32", free, there=Cores(each)) for each in (cores, cores + more))
    assert few.generation_replicas <= many.generation_replicas
    roomy = plan_cpu(TESTBED, "float32", free + more * GB, there=Cores(cores))
    assert few.generation_replicas <= roomy.generation_replicas


def test_small_models_get_a_process_a_core_and_large_ones_more_threads() -> None:
    """The table of docs/operations.md."""
    for cores, replicas, threads_of_large in ((1, 1, 1), (2, 2, 2), (4, 3, 3), (8, 7, 7), (16, 15, 15)):
        small = plan_cpu(TESTBED, "float32", 64 * GB, there=Cores(cores))
        assert (small.generation_replicas, small.generation_threads) == (replicas, 1)
        large = plan_cpu(SD_14, "float32", 64 * GB, there=Cores(cores))
        assert (large.generation_replicas, large.generation_threads) == (1, threads_of_large)
    assert plan_cpu(TESTBED, "float32", 64 * GB, there=Cores(64)).generation_replicas == 16


def test_units_in_flight_grow_with_the_replicas() -> None:
    of = {cores: plan_cpu(None, "float32", 64 * GB, there=Cores(cores)).concurrent_units for cores in (1, 2, 4, 16)}
    assert of == {1: 6, 2: 6, 4: 9, 16: 45}


def test_the_replicas_and_threads_that_are_set_stand() -> None:
    for load in (None, SD_14):
        plan = plan_cpu(load, "bfloat16", 100 * GB, 3, there=Cores(2), threads=5)
        assert (plan.generation_replicas, plan.generation_threads) == (3, 5)


def test_what_is_set_beyond_the_machine_is_said() -> None:
    assert plan_cpu(SD_14, "bfloat16", 100 * GB, there=Cores(2)).beyond == ()
    for load in (None, TESTBED):
        assert plan_cpu(load, "bfloat16", 100 * GB, there=Cores(2)).beyond == ()
        cores, memory = plan_cpu(load, "bfloat16", 25 * GB, 64, there=Cores(2), threads=2).beyond
        assert cores.startswith("64 workers of 2 threads that make pictures share 2 cores")
        assert memory.startswith("64 workers that make pictures take ")
    plan = plan_cpu(TESTBED, "float32", 20 * GB, 1, there=Cores(2), threads=64)
    assert any("beware: 1 worker of 64 threads" in line for line in plan.lines())


def test_what_is_counted_for_a_replica_holds_its_models() -> None:
    shapes = Shapes(models_in_memory=3)
    weights = 3 * SD_14.size.weight_bytes("float32")
    assert replica_bytes(SD_14, "float32", shapes) > weights
    assert other_bytes(SD_14, "float32", shapes) > SD_14.judge_bytes


def test_the_explanation_says_what_the_plan_rests_on() -> None:
    settings = ServeSettings(generation_replicas=2, decode_batch=4)
    cards = [Card("a card", 80 * GB)]
    cases = ((TESTBED, (), ("cores", "GB free", "as set")), (SD_14, cards, ("a card", "80.0 GB free", "'sd/1.4'")))
    for load, found, words in cases:
        said = "\n".join(plan_of(load, settings, found).explained())
        for word in (*words, "decode_batch=4, generation_replicas=2"):
            assert word in said
