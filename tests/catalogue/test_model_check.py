"""What is known of a model without loading it: every problem at once, notes and facts, and no PyTorch for it."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.families import audited, family_of
from unerase_backend.catalogue.findings import ModelCheck
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.catalogue.model_fit import DEFAULTS
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

REFERENCE = EMBEDDED.parent / "reference"
UNET = "unet/diffusion_pytorch_model.safetensors"
Check = Callable[..., ModelCheck]

INPAINTING = "a model for inpainting, which takes a picture and a mask beside the prompt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the testbed's reference, to be changed."""
    shutil.copytree(REFERENCE, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Checks the model as it is then on the disk, with what the keyword arguments replace in it."""

    def run(resolution: int = 32, **replaced: str) -> ModelCheck:
        models = {"own": {"pipeline": "model", "resolution": resolution}, "edited": {"base": "own"} | replaced}
        (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": models}))
        return check_model(Catalogue.load(embedded=tmp_path / "models.yaml"), "edited" if replaced else "own")

    return run


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header(**tensors: list[int]) -> bytes:
    """A safetensors file of zeros in bfloat16."""
    content, end = {}, 0
    for name, shape in tensors.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        content[name.replace("__", ".")] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def test_the_testbed_is_sound() -> None:
    catalogue = Catalogue.load()
    for name in catalogue.models:
        found = check_model(catalogue, name)
        assert (found.problems, found.notes, found.error) == ((), (), None)
    facts = check_model(catalogue, "testbed/esd-x").facts
    assert (facts.family, facts.prediction_type, facts.scheduler) == ("Stable Diffusion", "epsilon", "DDIMScheduler")
    assert (facts.prompt_length, facts.resolution) == (24, 32)
    unet = facts.parts["unet"]
    assert unet.files == ("diffusion_pytorch_model.safetensors", "unet.safetensors")
    assert (unet.parameters, unet.bytes, unet.dtypes) == (1_001_828, 2 * 1_001_828, ("F16",))


def test_every_problem_is_found_at_once(folder: Path, check: Check) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    shutil.rmtree(folder / "scheduler")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    edit(folder / "text_encoder" / "config.json", hidden_size=32, auto_map={"AutoModel": "evil.Evil"})
    found = check(resolution=30)
    assert [(problem.part, problem.reason) for problem in found.problems] == [
        ("text_encoder", "MODEL_NAMES_CODE"),
        ("unet", "WEIGHTS_NOT_SAFETENSORS"),
        ("vae", "WEIGHTS_UNREADABLE"),
        ("scheduler", "MODEL_INCOMPLETE"),
        ("tokenizer", "MODEL_INCOMPLETE"),
        ("unet", "MODEL_UNSUPPORTED"),
        ("", "MODEL_UNSUPPORTED"),
    ]
    unet = found.problems[1]
    assert (unet.looked_for, unet.found) == (UNET, "unet/diffusion_pytorch_model.bin")
    assert unet.remedy.endswith("unerase import model --as model --out FOLDER")
    assert isinstance(found.error, UnsafeModelError)
    assert found.error.metadata == {
        "model": "own",
        "part": "text_encoder",
        "file_found": "text_encoder/config.json",
    }
    assert "and 2 more problems" in found.error.message
    assert str(folder) not in found.error.message


def test_a_missing_shard_is_named_with_its_index(folder: Path, check: Check) -> None:
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / UNET).rename(folder / "unet" / names[0])
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": names[0], "conv_out.bias": names[1]}}))
    (problem,) = check().problems
    assert (problem.reason, problem.looked_for, problem.found) == ("WEIGHTS_SHARD_MISSING", names[1], names[0])
    assert index.name in problem.text
    index.unlink()
    (problem,) = check().problems
    assert (problem.reason, problem.looked_for) == ("WEIGHTS_MISSING", f"{UNET}.index.json")


@pytest.mark.parametrize(
    ("pipeline", "family"),
    [
        ("StableDiffusionXLInpaintPipeline", f"SDXL, {INPAINTING}"),
        ("FluxFillPipeline", f"FLUX, {INPAINTING}"),
        ("SanaControlNetPipeline", "Sana, a ControlNet, which takes a picture beside the prompt"),
        ("Flux2Pipeline", "FLUX.2"),
        ("StableCascadeCombinedPipeline", "Stable Cascade"),
        ("AuraFlowPipeline", "AuraFlow"),
        ("KandinskyV22CombinedPipeline", "Kandinsky"),
        ("IFPipeline", "DeepFloyd IF"),
        ("StableDiffusionInpaintPipeline", INPAINTING),
        (
            "StableDiffusionInstructPix2PixPipeline",
            "a model for instructions, which takes a picture beside the prompt",
        ),
    ],
)
def test_another_family_is_named_before_anything_else(folder: Path, check: Check, pipeline: str, family: str) -> None:
    shutil.rmtree(folder / "unet")
    edit(folder / "model_index.json", _class_name=pipeline, transformer=["diffusers", "Transformer"])
    found = check()
    (problem,) = found.problems
    expected = f"it is a {pipeline} ({family}), which cannot be audited yet; {audited()} can"
    assert problem.text.startswith(expected)
    assert isinstance(found.error, PreconditionError)
    with pytest.raises(PreconditionError) as refused:
        Catalogue.load(embedded=folder.parent / "models.yaml").describe_model("own")
    assert refused.value.message == found.error.message


def test_the_families_are_classes_of_diffusers() -> None:
    import diffusers

    pipelines = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    named = {family_of(name) for name in pipelines}
    for family in (f"SDXL, {INPAINTING}", "Kandinsky", "Wuerstchen", "Qwen-Image"):
        assert family in named
    assert not family_of("StableDiffusionPipeline")
    # What is a way to use Stable Diffusion, and not another model.
    assert not family_of("StableDiffusionAttendAndExcitePipeline")


def test_a_refiner_is_refused_with_the_reason(folder: Path, check: Check) -> None:
    edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=True)
    (problem,) = check().problems
    assert problem.reason == "MODEL_UNSUPPORTED"
    assert "the refiner of Stable Diffusion XL" in problem.what
    assert "audit the base model" in problem.what


@pytest.mark.parametrize(
    ("channels", "family"), [(9, "inpainting"), (8, "InstructPix2Pix"), (5, "depth"), (7, "upscaling")]
)
def test_a_unet_that_takes_more_than_latents(folder: Path, check: Check, channels: int, family: str) -> None:
    edit(folder / "unet" / "config.json", in_channels=channels)
    (problem,) = check().problems
    assert (problem.part, problem.reason) == ("unet", "MODEL_UNSUPPORTED")
    assert family in problem.what


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet", {"cross_attention_dim": 48}, "reads another width (48) than the text encoder writes (64)"),
        ("unet", {"addition_embed_type": "text_time"}, "conditioning beyond the prompt (addition_embed_type)"),
        ("unet", {"out_channels": 8}, "different latents"),
        ("unet", {"in_channels": "many"}, "a value of the wrong type"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "names UNet3DConditionModel"),
        ("unet", {"cross_attention_dim": [64, 64]}, "reads another width ([64, 64])"),
        ("vae", {"latent_channels": 16}, "the VAE has 16"),
        ("vae", {"scaling_factor": "0.18215"}, "scaling_factor of the VAE is '0.18215'"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor of the VAE is nan"),
        ("vae", {"scaling_factor": 0}, "scaling_factor of the VAE is 0"),
        ("text_encoder", {"max_position_embeddings": 20}, "prompts are longer (24) than the text encoder reads (20)"),
    ],
)
def test_parts_that_do_not_fit(folder: Path, check: Check, file: str, changes: dict[str, Any], words: str) -> None:
    edit(folder / file / "config.json", **changes)
    (problem,) = check().problems
    assert problem.reason == "MODEL_UNSUPPORTED"
    assert words in problem.text


@pytest.mark.parametrize("length", [None, "24", 24.0, float("nan"), 10**30])
def test_a_tokenizer_whose_length_is_no_whole_number_of_tokens(folder: Path, check: Check, length: Any) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=length)
    (problem,) = check().problems
    assert (problem.part, problem.reason) == ("tokenizer", "MODEL_UNSUPPORTED")
    assert "give model_max_length 24 in tokenizer/tokenizer_config.json" in problem.text


def test_a_file_that_git_did_not_fetch(folder: Path, check: Check) -> None:
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167536\n")
    (problem,) = check().problems
    assert problem.reason == "WEIGHTS_UNREADABLE"
    assert "pointer of Git LFS" in problem.text
    assert "git lfs pull" in problem.text


def test_what_a_configuration_leaves_out_has_the_libraries_defaults() -> None:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(), AutoencoderKL()
    for part, config in (
        ("unet", unet.config),
        ("vae", vae.config),
        ("text_encoder", CLIPTextConfig().to_dict()),
    ):
        assert {key: config[key] for key in DEFAULTS[part]} == DEFAULTS[part]


def test_what_is_not_used_is_said(folder: Path, check: Check) -> None:
    edit(
        folder / "model_index.json",
        _class_name="StableDiffusionPipelineSafe",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    found = check()
    assert not found.problems
    words = ("PipelineSafe", "safety checker", "image_encoder", "bf16.safetensors", "index.json is ignored")
    for word in words:
        assert sum(word in note for note in found.notes) == 1, (word, found.notes)
    assert len(found.notes) == len(words)
    models = {"own": {"pipeline": "model", "resolution": 32, "guards": [{"kind": "safety-checker"}]}}
    (folder.parent / "guarded.yaml").write_text(yaml.safe_dump({"models": models}))
    guarded = check_model(Catalogue.load(embedded=folder.parent / "guarded.yaml"), "own")
    assert set(found.notes) - set(guarded.notes) == {note for note in found.notes if "safety checker" in note}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(conv_in__bias=[32]), None),
        (header(unet__conv_in__bias=[32]), None),
        (header(lora_unet_conv_in__lora_down__weight=[4, 36]), "WEIGHTS_LAYOUT"),
        (header(hidden__payload=[4]), "WEIGHTS_UNKNOWN_TENSOR"),
        (header(), "WEIGHTS_INCOMPLETE"),
        (header(conv_in__bias=[32])[:-1], "WEIGHTS_UNREADABLE"),
        (b"", "WEIGHTS_UNREADABLE"),
    ],
)
def test_a_replacing_file_is_read_by_its_header(folder: Path, check: Check, content: bytes, reason: str | None) -> None:
    (folder.parent / "edit.safetensors").write_bytes(content)
    found = check(unet="edit.safetensors")
    assert [problem.reason for problem in found.problems] == ([reason] if reason else [])
    assert found.facts.parts["unet"].dtypes == (("F16",) if reason else ("BF16", "F16"))


def test_a_replacing_folder_with_a_pickle(folder: Path, check: Check) -> None:
    (folder.parent / "erased").mkdir()
    (folder.parent / "erased" / "diffusion_pytorch_model.bin").write_bytes(b"")
    (problem,) = check(unet="erased").problems
    assert problem.reason == "WEIGHTS_NOT_SAFETENSORS"
    assert problem.remedy == "import it: unerase import diffusion_pytorch_model.bin --as unet --out FOLDER"


def test_a_link_out_of_the_folder(folder: Path, check: Check) -> None:
    shutil.move(folder / "vae" / "config.json", folder.parent / "outside.json")
    os.symlink(folder.parent / "outside.json", folder / "vae" / "config.json")
    (problem,) = check().problems
    assert (problem.part, problem.reason, problem.found) == ("vae", "PATH_ESCAPES", "config.json")


def test_an_index_behind_a_link_out_of_the_folder(folder: Path, check: Check) -> None:
    shutil.move(folder / "model_index.json", folder.parent / "outside.json")
    os.symlink(folder.parent / "outside.json", folder / "model_index.json")
    (problem,) = check().problems
    assert (problem.part, problem.reason, problem.found) == ("", "PATH_ESCAPES", "model_index.json")


def test_a_model_of_the_hub_is_checked_once_it_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    entry = {"hub": "org/name", "revision": revision, "resolution": 32}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"hub_organisations": ["org"], "models": {"hub": entry}}))
    catalogue = Catalogue.load(embedded=tmp_path / "models.yaml")
    found = check_model(catalogue, "hub")
    assert not found.problems
    assert "org/name is fetched from the hub when it is first used" in found.notes[0]
    # A snapshot holds links to files that are stored elsewhere.
    snapshot = tmp_path / "cache" / "models--org--name" / "snapshots" / revision
    for path in REFERENCE.rglob("*.*"):
        place = snapshot / path.relative_to(REFERENCE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    found = check_model(catalogue, "hub")
    assert (found.problems, found.notes) == ((), ())
    assert len(found.facts.parts) == 3
    assert catalogue.model_parts("hub").folder == snapshot


def test_a_check_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from unerase_backend.catalogue import Catalogue, model_check; catalogue = Catalogue.load(); "
        "model_check.check_model(catalogue, 'testbed/uce'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_schedule_that_no_audit_takes_is_said(folder: Path, check: Check) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=10)
    [problem] = check().problems
    assert (problem.part, problem.reason) == ("scheduler", "SCHEDULE_UNSUPPORTED")
    assert problem.what == "scheduler_config.json: num_train_timesteps 10 is not 1000"
