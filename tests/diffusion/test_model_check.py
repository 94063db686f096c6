"""A check with shapes, without weights in memory: it finds all problems at once, and what loads has none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.findings import Findings, ModelCheck
from unerase_backend.diffusion import model_check
from unerase_backend.diffusion.model import DiffusionModel

Load = Callable[..., DiffusionModel]
UNET = Path("pipeline/unet/diffusion_pytorch_model.safetensors")


def check(folder: Path, **replaced: str) -> ModelCheck:
    changes = "".join(f", {part}: {file}" for part, file in replaced.items())
    (folder / "catalogue.yaml").write_text(
        f"models:\n  base: {{pipeline: pipeline, resolution: 16}}\n  changed: {{base: base{changes}}}\n"
    )
    return model_check.check_model(Catalogue.load(embedded=folder / "catalogue.yaml"), "changed")


def test_what_loads_has_no_problem_and_says_its_size(tiny: Path, load_tiny: Load) -> None:
    model = load_tiny()
    found = check(tiny)
    assert found.problems == ()
    for part, facts in found.facts.parts.items():
        assert facts.parameters == sum(tensor.numel() for tensor in model.backbone.modules[part].state_dict().values())
        assert (facts.bytes, facts.dtypes) == (4 * facts.parameters, ("F32",))
    assert found.facts.prompt_length == model.prompt_length


def test_no_module_holds_memory(tiny: Path) -> None:
    check(tiny)
    catalogue = Catalogue.load(embedded=tiny / "catalogue.yaml")
    prepared = model_check.prepare(catalogue, "changed", Findings("changed"))
    assert prepared is not None
    for module in prepared.modules.values():
        assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])


def test_all_tensors_that_are_wrong_are_told_at_once(tiny: Path) -> None:
    tensors = load_file(tiny / UNET)
    shorter = {key: tensor for key, tensor in tensors.items() if not key.startswith("time_embedding.")}
    shorter["conv_in.weight"] = torch.zeros(8, 5, 3, 3)
    shorter["conv_out.weight"] = torch.zeros(5, 8, 3, 3)
    save_file(shorter | {"hidden.payload": torch.zeros(1), "hidden.other": torch.zeros(1)}, tiny / UNET)
    unknown, missing, wrong = check(tiny).problems
    assert (unknown.reason, unknown.what) == (
        "WEIGHTS_UNKNOWN_TENSOR",
        "the unet has no tensor 'hidden.other' and 1 more",
    )
    assert (missing.reason, missing.what) == (
        "WEIGHTS_INCOMPLETE",
        "the weights of unet lack 4 tensors: 'time_embedding.linear_1.bias' and 3 more",
    )
    assert wrong.reason == "WEIGHTS_WRONG_SHAPE"
    assert "'conv_in.weight' of the unet has the shape (8, 4, 3, 3), not (8, 5, 3, 3)" in wrong.what
    assert "and 1 more" in wrong.what
    assert {problem.found for problem in (unknown, missing, wrong)} == {UNET.name}


def test_a_unet_of_another_size(tiny: Path) -> None:
    other = UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 16),
        norm_num_groups=4,
        layers_per_block=1,
    )
    save_file(other.state_dict(), tiny / "edit.safetensors")
    found = check(tiny, unet="edit.safetensors")
    assert {problem.reason for problem in found.problems} == {"WEIGHTS_WRONG_SHAPE"}
    assert found.problems[0].found == "edit.safetensors"
    assert "another architecture" in found.problems[0].remedy


def test_a_tokenizer_with_more_tokens_than_are_embedded(tiny: Path) -> None:
    config = tiny / "pipeline" / "text_encoder" / "config.json"
    tensors = load_file(config.with_name("model.safetensors"))
    tensors["embeddings.token_embedding.weight"] = tensors["embeddings.token_embedding.weight"][:-3].clone()
    save_file(tensors, config.with_name("model.safetensors"))
    embedded = len(tensors["embeddings.token_embedding.weight"])
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": embedded}))
    (problem,) = check(tiny).problems
    assert (problem.part, problem.reason) == ("tokenizer", "MODEL_UNSUPPORTED")
    assert problem.what == f"the tokenizer has the token {embedded + 2}, and the text encoder embeds {embedded} tokens"


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "unet.conv_in.lora_B.weight": (8, 2, 1, 1)}, None),
        (
            {"unet.conv_in.lora_A.weight": (2, 5, 3, 3), "unet.conv_in.lora_B.weight": (8, 2, 1, 1)},
            "WEIGHTS_WRONG_SHAPE",
        ),
        (
            {"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "unet.conv_in.lora_B.weight": (8, 3, 1, 1)},
            "WEIGHTS_WRONG_SHAPE",
        ),
        ({"unet.conv_on.lora_A.weight": (2, 4), "unet.conv_on.lora_B.weight": (8, 2)}, "WEIGHTS_UNKNOWN_TENSOR"),
        ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3)}, "WEIGHTS_INCOMPLETE"),
    ],
)
def test_a_lora_is_checked_as_it_would_be_merged(
    tiny: Path, factors: dict[str, tuple[int, ...]], reason: str | None
) -> None:
    save_file({key: torch.zeros(shape) for key, shape in factors.items()}, tiny / "lora.safetensors")
    problems = check(tiny, lora="lora.safetensors").problems
    assert [(problem.part, problem.reason) for problem in problems] == ([("lora", reason)] if reason else [])


def test_a_model_at_the_size_of_stable_diffusion_is_checked_without_its_memory(tiny: Path) -> None:
    """The UNet of Stable Diffusion 1.4 has 860 million parameters; here its file lacks nearly all of them."""
    full = {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "norm_num_groups": 32,
    }
    config = tiny / "pipeline" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | full))
    save_file({"conv_in.bias": torch.zeros(320)}, tiny / UNET)
    reasons = {problem.reason: problem for problem in check(tiny).problems}
    assert reasons["WEIGHTS_INCOMPLETE"].what.startswith("the weights of unet lack 685 tensors")
    assert "another width (768)" in reasons["MODEL_UNSUPPORTED"].what


def test_a_model_without_its_tokenizer_or_scheduler(tiny: Path) -> None:
    for part in ("tokenizer", "scheduler"):
        shutil.rmtree(tiny / "pipeline" / part)
    found = check(tiny)
    assert {(problem.part, problem.looked_for) for problem in found.problems} == {
        ("tokenizer", "tokenizer/"),
        ("scheduler", "scheduler/"),
    }
