"""LoRAs: merged as their definition has it, and refused where they do not fit.

`tests/integrations/test_peft.py` compares them with diffusers and PEFT.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from support.loras import ATTENTION, LAYERS, WORDS, factors, kohya, loaded, peft
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.lora import METADATA_KEY
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.runtime.errors import InvalidRequestError, UnsafeModelError
from unerase_backend.verdict.roles import reference_problem

PROCESSORS = {"to_q": "to_q_lora", "to_out.0": "to_out_lora"}


def processors(unet: dict[str, tuple[Tensor, Tensor]], prefix: str) -> dict[str, Tensor]:
    stored = {}
    for name, each in unet.items():
        owner, _, layer = name.partition(".attn2.")
        for role, tensor in zip(("down", "up"), each, strict=True):
            stored[f"{prefix}{owner}.attn2.processor.{PROCESSORS[layer]}.{role}.weight"] = tensor
    return stored


@pytest.fixture(scope="module")
def base(saved_tiny: Path) -> DiffusionModel:
    """The tiny pipeline without a LoRA, which nobody changes."""
    entry = saved_tiny.parent / "base.yaml"
    entry.write_text("models: {base: {pipeline: pipeline, resolution: 16}}\n")
    return load_model(Catalogue.load(embedded=entry), "base", torch.device("cpu"), torch.float32)


@contextmanager
def beside(module: Any, given: dict[str, tuple[Tensor, Tensor]], share: Callable[[int], float]) -> Iterator[None]:
    """LoRA as it is defined, beside the layers: y = layer(x) + share(r) * up(down(x))."""

    def hook(layer: nn.Module, down: Tensor, up: Tensor) -> Callable[..., Tensor]:
        def add(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if isinstance(layer, nn.Conv2d):
                low = nn.functional.conv2d(inputs[0], down, stride=layer.stride, padding=layer.padding)
                return output + share(len(down)) * nn.functional.conv2d(low, up)
            return output + share(len(down)) * (inputs[0] @ down.T @ up.T)

        return add

    hooks = [
        layer.register_forward_hook(hook(layer, *given[name]))
        for name, layer in module.named_modules()
        if name in given
    ]
    assert len(hooks) == len(given)
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def predicted(model: DiffusionModel) -> Tensor:
    """What the UNet predicts for a fixed input, with the encoding of a fixed prompt."""
    ids = torch.arange(12)[None]
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = model.text_encoder(ids)[0]
        found: Tensor = model.denoiser(latents, torch.tensor([500]), encoded).sample
    return found


@pytest.mark.parametrize("layout", ["peft", "peft with metadata", "kohya", "kohya with alpha"])
@pytest.mark.parametrize("scale", [1.0, 0.5, -1.5])
def test_a_merged_lora_is_one_beside_its_layers(tiny: Path, base: DiffusionModel, layout: str, scale: float) -> None:
    unet, words = factors(base.denoiser, LAYERS), factors(base.text_encoder, WORDS)
    alpha = 1.5 if layout in ("peft with metadata", "kohya with alpha") else None
    stored = peft(unet, words) if layout.startswith("peft") else kohya(unet, words, alpha)
    metadata = {"unet.lora_alpha": 7.0, "unet.alpha_pattern": dict.fromkeys(LAYERS, alpha)}
    metadata |= {"text_encoder.lora_alpha": alpha, "text_encoder.r": 2}
    written = {METADATA_KEY: json.dumps(metadata)} if layout == "peft with metadata" else {"format": "pt"}
    save_file(stored, tiny / "lora.safetensors", written)
    found = predicted(loaded(tiny, f"lora: lora.safetensors, scale: {scale}"))

    def share(rank: int) -> float:
        return scale * (1.0 if alpha is None else alpha / rank)

    with beside(base.denoiser, unet, share), beside(base.text_encoder, words, share):
        expected = predicted(base)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - predicted(base)).abs().max() > 1e-2


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_attention_processors_are_read(tiny: Path, base: DiffusionModel, prefix: str) -> None:
    layers = {name: rank for name, rank in LAYERS.items() if ".attn2." in name}
    unet = factors(base.denoiser, layers)
    save_file(processors(unet, prefix), tiny / "lora.safetensors")
    found = predicted(loaded(tiny, "lora: lora.safetensors"))
    with beside(base.denoiser, unet, lambda _: 1.0):
        torch.testing.assert_close(found, predicted(base), rtol=1e-4, atol=1e-5)


def test_several_loras_add_up_in_any_layout(tiny: Path, base: DiffusionModel) -> None:
    unet, words = factors(base.denoiser, LAYERS), factors(base.text_encoder, WORDS)
    save_file(peft(unet, {}), tiny / "one.safetensors")
    save_file(kohya(unet, words, 1.0), tiny / "lora.safetensors")
    changed = loaded(tiny, "lora: [one.safetensors, {file: lora.safetensors, scale: 0.5}]")
    for name, (down, up) in unet.items():
        product = (up.double().flatten(1) @ down.double().flatten(1)).float()
        before = base.denoiser.state_dict()[f"{name}.weight"]
        expected = before + (product * (1 + 0.5 / len(down))).reshape(before.shape)
        torch.testing.assert_close(changed.denoiser.state_dict()[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)


def test_a_later_change_replaces_what_a_lora_changed(tiny: Path, base: DiffusionModel) -> None:
    layer = f"{ATTENTION}.attn2.to_q"
    save_file(peft(factors(base.denoiser, LAYERS), {}), tiny / "lora.safetensors")
    save_file(
        {f"{layer}.weight": torch.zeros_like(base.denoiser.state_dict()[f"{layer}.weight"])}, tiny / "z.safetensors"
    )
    changed = loaded(tiny, "unet: z.safetensors", base="half")
    assert not changed.denoiser.state_dict()[f"{layer}.weight"].any()
    # Within one entry the LoRA comes last.
    assert loaded(tiny, "unet: z.safetensors, lora: lora.safetensors").denoiser.state_dict()[f"{layer}.weight"].any()


def test_the_sum_is_rounded_once(tiny: Path, base: DiffusionModel) -> None:
    unet = {name: (down / 64, up / 64) for name, (down, up) in factors(base.denoiser, LAYERS).items()}
    save_file(kohya(unet, {}), tiny / "lora.safetensors")
    whole = loaded(tiny, "lora: lora.safetensors").denoiser.state_dict()
    half = loaded(tiny, "lora: lora.safetensors", dtype=torch.bfloat16).denoiser.state_dict()
    assert all(torch.equal(half[key], tensor.bfloat16()) for key, tensor in whole.items())


def test_digest_and_roles_tell_scales_apart(tiny: Path, base: DiffusionModel) -> None:
    save_file(peft(factors(base.denoiser, LAYERS), {}), tiny / "lora.safetensors")
    loaded(tiny, "lora: lora.safetensors, scale: 1.0")
    read = Catalogue.load(embedded=tiny / "catalogue.yaml")
    base, changed, half = (read.describe_model(name) for name in ("base", "changed", "half"))
    assert len({base.digest, changed.digest, half.digest}) == 3
    assert [(file.component, file.lora_scale) for file in half.files[-1:]] == [("unet", 0.5)]
    assert not reference_problem(base, changed)
    assert not reference_problem(half, changed)
    assert read.models["changed"].lora[0].scale == 1.0


def test_a_pinned_file_must_be_that_file(tiny: Path, base: DiffusionModel) -> None:
    unet = base.denoiser
    save_file(peft(factors(unet, LAYERS), {}), tiny / "lora.safetensors")
    save_file({"conv_in.bias": unet.conv_in.bias.data}, tiny / "unet.safetensors")
    other = "0" * 64
    for entry in (
        f"lora: {{file: lora.safetensors, sha256: '{other}'}}",
        f"unet: unet.safetensors, sha256: {{unet: '{other}'}}",
        f"lora: lora.safetensors, sha256: {{vae: '{other}'}}",
    ):
        with pytest.raises(UnsafeModelError) as refused:
            loaded(tiny, entry)
        assert refused.value.reason == "WEIGHTS_CHANGED"


@pytest.mark.parametrize(
    "entry",
    [
        "lora: lora.safetensors, scale: 0.0",
        "lora: lora.safetensors, scale: .nan",
        "lora: [lora.safetensors], scale: 0.5",
        "scale: 0.5",
        "lora: lora.pt",
        "lora: {file: lora.safetensors, weight: 1.0}",
        "lora: {file: lora.safetensors, sha256: abc}",
        f"lora: lora.safetensors, sha256: {{words: '{'0' * 64}'}}",
    ],
)
def test_a_bad_entry_is_refused(tiny: Path, base: DiffusionModel, entry: str) -> None:
    save_file(peft(factors(base.denoiser, LAYERS), {}), tiny / "lora.safetensors")
    with pytest.raises(InvalidRequestError):
        loaded(tiny, entry)


DOWN, UP = torch.zeros(2, 8), torch.zeros(8, 2)
LAYER = f"unet.{ATTENTION}.attn1.to_q"
NAMES = {f"{LAYER}.lora_A.weight": DOWN, f"{LAYER}.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("tensors", "reason", "word"),
    [
        (NAMES | {f"{LAYER}.lora_magnitude_vector.weight": torch.zeros(16)}, "LORA_UNSUPPORTED", "DoRA"),
        ({"lora_unet_x.lora_mid.weight": DOWN}, "LORA_UNSUPPORTED", "LoCon"),
        ({"lora_unet_x.hada_w1_a": DOWN}, "LORA_UNSUPPORTED", "LoHa"),
        ({"lora_unet_x.lokr_w1": DOWN}, "LORA_UNSUPPORTED", "LoKr"),
        ({"lora_unet_x.weight": DOWN, "lora_unet_x.on_input": UP}, "LORA_UNSUPPORTED", "IA3"),
        ({"lora_unet_x.w_norm": DOWN}, "LORA_UNSUPPORTED", "normalisation in full"),
        ({"lora_unet_x.a1.weight": DOWN}, "LORA_UNSUPPORTED", "GLoRA"),
        (
            {"lora_te2_x.lora_down.weight": DOWN, "lora_te2_x.lora_up.weight": UP},
            "LORA_UNSUPPORTED",
            "the text_encoder_2, which this Stable Diffusion 1 and 2 does not have; it has unet, text_encoder",
        ),
        ({"transformer.x.lora_A.weight": DOWN, "transformer.x.lora_B.weight": UP}, "LORA_UNSUPPORTED", "transformer"),
        ({"lora_unet_joint_blocks_0_x.lora_down.weight": DOWN}, "LORA_UNSUPPORTED", "its authors' own names"),
        ({"conv_in.weight": DOWN}, "WEIGHTS_UNKNOWN_TENSOR", "conv_in.weight"),
        ({f"{LAYER}.lora_A.weight": DOWN}, "WEIGHTS_INCOMPLETE", "'up'"),
        ({"lora_unet_a.alpha": torch.tensor(1.0)}, "WEIGHTS_INCOMPLETE", "lora_unet_a.alpha"),
        (
            {"unet.nowhere.to_q.lora_A.weight": DOWN, "unet.nowhere.to_q.lora_B.weight": UP},
            "WEIGHTS_UNKNOWN_TENSOR",
            "nowhere_to_q",
        ),
        (NAMES | {f"{LAYER}.lora_A.weight": torch.zeros(3, 8)}, "WEIGHTS_WRONG_SHAPE", "(3, 8)"),
        (NAMES | {f"{LAYER}.lora_A.weight": torch.zeros(2, 7)}, "WEIGHTS_WRONG_SHAPE", "(2, 7)"),
        (NAMES | {f"{LAYER}.alpha": torch.zeros(2)}, "WEIGHTS_WRONG_SHAPE", "alpha"),
        (NAMES | {f"{LAYER}.alpha": torch.tensor(float("nan"))}, "WEIGHTS_WRONG_SHAPE", "alpha"),
        (NAMES | {f"{LAYER}.alpha": torch.zeros(())}, "WEIGHTS_INCOMPLETE", "changes nothing"),
        (NAMES | {f"{LAYER}.lora_A.weight": DOWN.to(torch.int8)}, "WEIGHTS_WRONG_TYPE", "16 bits"),
        (NAMES | {f"{LAYER}.lora.down.weight": DOWN.clone()}, "WEIGHTS_UNKNOWN_TENSOR", "same layer"),
        (NAMES | {f"{LAYER}.lora_B.weight": UP + float("inf")}, "WEIGHTS_NOT_FINITE", "attn1.to_q"),
        ({}, "WEIGHTS_INCOMPLETE", "empty"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(tiny: Path, tensors: dict[str, Tensor], reason: str, word: str) -> None:
    save_file(tensors, tiny / "lora.safetensors")
    with pytest.raises(UnsafeModelError) as refused:
        loaded(tiny, "lora: lora.safetensors")
    assert refused.value.reason == reason, refused.value.message
    assert word in refused.value.message


def test_a_lora_that_is_a_pickle_is_refused(tiny: Path) -> None:
    torch.save(NAMES, tiny / "lora.safetensors")
    with pytest.raises(UnsafeModelError) as refused:
        loaded(tiny, "lora: lora.safetensors")
    assert refused.value.reason == "WEIGHTS_UNREADABLE"


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_a_change_as_a_lora_is_nearly_the_change(tmp_path: Path, catalogue: Catalogue, layout: str) -> None:
    """UCE's change of the testbed, cut to rank 8, is merged to what its factors give in double precision."""
    reference = load_model(catalogue, "testbed/reference", torch.device("cpu"), torch.float32).denoiser.state_dict()
    [edited] = catalogue.model_parts("testbed/uce").changes["unet"]
    assert isinstance(edited, Path)
    change, stored = {}, {}
    for key, weight in load_file(edited).items():
        u, s, v = torch.linalg.svd(weight.float() - reference[key], full_matrices=False)
        down, up = v[:8].contiguous(), (u[:, :8] * s[:8]).contiguous()
        change[key] = (up.double() @ down.double()).float()
        name = key.removesuffix(".weight")
        stored |= peft({name: (down, up)}, {}) if layout == "peft" else kohya({name: (down, up)}, {}, 8.0)
        assert (reference[key] + change[key] - weight.float()).abs().max() < 0.04
    save_file(stored, tmp_path / "lora.safetensors")
    (tmp_path / "own.yaml").write_text("models: {own/lora: {base: testbed/reference, lora: lora.safetensors}}\n")
    read = Catalogue.load([str(tmp_path / "own.yaml")])
    found = load_model(read, "own/lora", torch.device("cpu"), torch.float32).denoiser.state_dict()
    for key, tensor in found.items():
        if key in change:
            torch.testing.assert_close(tensor, reference[key] + change[key], rtol=0, atol=1e-5)
        else:
            assert torch.equal(tensor, reference[key])
