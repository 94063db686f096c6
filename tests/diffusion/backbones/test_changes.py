"""What every family must keep of changes: replaced parts, LoRAs, learned embeddings, interpolation, shared weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from support.tiny_models import CPU, PROMPTS, TinyModel, saved
from support.tiny_pipelines import PIPELINES
from unerase.internal.v1alpha1.generation_pb2 import Interpolation, ModelChange
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt, TokenIds
from unerase_backend.catalogue.backbone_kinds import denoiser_of
from unerase_backend.catalogue.model_check import check_model as check_files
from unerase_backend.catalogue.part_names import REPLACEABLE as OF_LORAS
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.sharing import share_weights
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import UnsafeModelError

# These have the parts of others.
_ALIKE = ("stable-diffusion-2", "stable-diffusion-xl-empty")


@pytest.fixture(scope="module", params=sorted({*PIPELINES} - {*_ALIKE}))
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A small pipeline of each family, with every set of parts once."""
    return saved(request.param, tmp_path_factory.mktemp(request.param))


def replaceable(tiny_model: TinyModel) -> list[str]:
    return [denoiser_of(tiny_model.model.backbone.parts), *tiny_model.encoders]


def attention(module: Any) -> list[str]:
    """Layers of a module that attend, or all others that are linear."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
    attending = ("to_q", "to_out.0", "add_k_proj", "q_proj", "out_proj", "SelfAttention.q", "SelfAttention.o")
    return [name for name in linear if name.endswith(attending)] or linear


def latents(model: DiffusionModel, tiny_model: TinyModel) -> Tensor:
    (made,) = Sampler(model, batch_rows=2).run([tiny_model.trajectory(PROMPTS[0])], picture=False)
    assert not made.failure
    return made.latents


def test_a_check_finds_no_problem_and_the_family(tiny_model: TinyModel) -> None:
    catalogue = tiny_model.catalogue()
    for check in (check_model, check_files):
        found = check(catalogue, "base")
        assert found.problems == ()
        assert found.facts is not None
        assert {*found.facts.parts} == {*tiny_model.model.backbone.modules}
        assert found.facts.resolution == tiny_model.model.resolution
    assert tiny_model.model.backbone.family == tiny_model.tiny.family
    title = tiny_model.model.backbone.title
    # The version of the first family is told by widths that these models do not have.
    assert found.facts.family == ("Stable Diffusion" if tiny_model.tiny.family == "stable-diffusion" else title)


def test_each_part_can_be_replaced(tiny_model: TinyModel) -> None:
    before = latents(tiny_model.model, tiny_model)
    states = {part: module.state_dict() for part, module in tiny_model.model.backbone.modules.items()}
    for part in replaceable(tiny_model):
        state = states[part]
        layer = f"{attention(tiny_model.model.backbone.modules[part])[0]}.weight"
        draws = torch.Generator().manual_seed(11)
        new = torch.randn(state[layer].shape, generator=draws)
        model = tiny_model.load({part: tiny_model.put({layer: new})})
        for other, module in model.backbone.modules.items():
            for name, tensor in module.state_dict().items():
                assert torch.equal(tensor, new if (other, name) == (part, layer) else states[other][name])
        assert not torch.equal(latents(model, tiny_model), before), part


def test_a_part_of_another_shape_is_refused(tiny_model: TinyModel) -> None:
    for part in replaceable(tiny_model):
        layer = f"{attention(tiny_model.model.backbone.modules[part])[0]}.weight"
        shape = tiny_model.model.backbone.modules[part].state_dict()[layer].shape
        catalogue = tiny_model.catalogue({part: tiny_model.put({layer: torch.zeros(shape[0] + 1, shape[1])})})
        for check in (check_model, check_files):
            problem = check(catalogue, "changed").problems[0]
            assert (problem.part, problem.reason) == (part, "WEIGHTS_WRONG_SHAPE")
        with pytest.raises(UnsafeModelError) as refused:
            load_model(catalogue, "changed", CPU, torch.float32)
        assert refused.value.reason == "WEIGHTS_WRONG_SHAPE"


def test_a_part_that_the_family_lacks_is_refused(tiny_model: TinyModel) -> None:
    known = tiny_model.model.backbone.parts
    for part in OF_LORAS:
        if part in known:
            continue
        catalogue = tiny_model.catalogue({part: tiny_model.put({"x.weight": torch.zeros(2, 2)})})
        problem = check_model(catalogue, "changed").problems[0]
        assert problem.part == part
        assert "does not have" in problem.what


def factors(module: Any, layers: list[str], rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(8)
    shapes = {layer: module.state_dict()[f"{layer}.weight"].shape for layer in layers}
    return {
        layer: (torch.randn((rank, columns), generator=draws), torch.randn((rows, rank), generator=draws))
        for layer, (rows, columns) in shapes.items()
    }


def peft(part: str, layer: str) -> tuple[str, str]:
    return f"{part}.{layer}.lora_A.weight", f"{part}.{layer}.lora_B.weight"


def kohya(part: str, layer: str) -> tuple[str, str]:
    prefix = part.replace("text_encoder", "te").replace("te_", "te")
    flat = f"lora_{prefix}_{layer.replace('.', '_')}"
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"


@pytest.mark.parametrize("names", [peft, kohya])
def test_a_lora_is_merged_into_every_part(tiny_model: TinyModel, names: Any) -> None:
    """W + scale alpha / r up down, here with r as alpha."""
    modules = tiny_model.model.backbone.modules
    states = {part: module.state_dict() for part, module in modules.items()}
    stored: dict[str, Tensor] = {}
    expected: dict[tuple[str, str], Tensor] = {}
    for part in replaceable(tiny_model):
        for layer, (down, up) in factors(modules[part], attention(modules[part])).items():
            stored |= dict(zip(names(part, layer), (down, up), strict=True))
            weight = states[part][f"{layer}.weight"].double()
            expected[part, f"{layer}.weight"] = (weight + 0.5 * up.double() @ down.double()).float()
    changed = tiny_model.load({"lora": tiny_model.put(stored), "scale": 0.5})
    for part, module in changed.backbone.modules.items():
        for name, tensor in module.state_dict().items():
            wanted = expected.pop((part, name), None)
            if wanted is None:
                assert torch.equal(tensor, states[part][name])
            else:
                torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-5)
    assert not expected
    assert not torch.equal(latents(changed, tiny_model), latents(tiny_model.model, tiny_model))


def test_a_lora_for_a_part_that_it_lacks_is_refused(tiny_model: TinyModel) -> None:
    for part in OF_LORAS:
        if part in tiny_model.model.backbone.modules:
            continue
        stored = dict(zip(peft(part, "x"), (torch.zeros(2, 4), torch.zeros(4, 2)), strict=True))
        catalogue = tiny_model.catalogue({"lora": tiny_model.put(stored)})
        for check in (check_model, check_files):
            (problem,) = check(catalogue, "changed").problems
            assert (problem.part, problem.reason) == ("lora", "LORA_UNSUPPORTED")
            assert part in problem.what


def test_interpolation_moves_every_part(tiny_model: TinyModel) -> None:
    """W + s (V - W), of the denoiser and of each text encoder; the autoencoder stays."""
    replaced = {}
    for part in replaceable(tiny_model):
        state = tiny_model.model.backbone.modules[part].state_dict()
        layer = f"{attention(tiny_model.model.backbone.modules[part])[0]}.weight"
        replaced[part] = tiny_model.put({layer: state[layer] * 3})
    catalogue = tiny_model.catalogue(replaced)
    towards = [ModelChange(interpolation=Interpolation(model="changed", share=0.25))]
    moved = load_model(catalogue, "base", CPU, torch.float32, changes=towards)
    other = load_model(catalogue, "changed", CPU, torch.float32)
    differing = set()
    for part, module in moved.backbone.modules.items():
        ours, theirs = (each.backbone.modules[part].state_dict() for each in (tiny_model.model, other))
        for name, tensor in module.state_dict().items():
            expected = ours[name].double() + 0.25 * (theirs[name].double() - ours[name].double())
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
            if not torch.equal(ours[name], theirs[name]):
                differing.add(part)
    assert differing == {*replaceable(tiny_model)}


def test_two_models_share_their_equal_weights(tiny_model: TinyModel) -> None:
    part = replaceable(tiny_model)[0]
    layer = f"{attention(tiny_model.model.denoiser)[0]}.weight"
    new = tiny_model.model.denoiser.state_dict()[layer] + 1
    changed, again = tiny_model.load({part: tiny_model.put({layer: new})}), tiny_model.load({})
    before = latents(changed, tiny_model)
    freed = share_weights(changed, [again])
    whole = sum(
        each.numel() * each.element_size()
        for module in again.backbone.modules.values()
        for each in {*module.parameters(), *module.buffers()}
    )
    assert freed == whole - new.numel() * new.element_size()
    assert torch.equal(latents(changed, tiny_model), before)


KEYS = {"CLIPTextModel": ("clip_l",), "CLIPTextModelWithProjection": ("clip_l", "clip_g"), "T5EncoderModel": ("t5xxl",)}


def named_rows(tiny_model: TinyModel, rows: int = 2) -> dict[str, Tensor]:
    """Rows of a word for every text encoder, by the names that trainers give them."""
    draws, found = torch.Generator().manual_seed(9), dict[str, Tensor]()
    for part in tiny_model.encoders:
        reader = next(each for each in tiny_model.model.backbone.readers if each.part == part)
        key = next((key for key in KEYS.get(type(reader.encoder).__name__, ("gemma2_2b",)) if key not in found), part)
        found[key if key not in found else "clip_g"] = torch.randn((rows, reader.width), generator=draws)
    return found


def test_a_learned_embedding_is_a_word_of_every_text_encoder(tiny_model: TinyModel) -> None:
    model, stored = tiny_model.model, named_rows(tiny_model)
    entry = {"embedding": tiny_model.put(stored), "token": "<toy>"}
    assert check_model(tiny_model.catalogue(entry), "changed").problems == ()
    changed = tiny_model.load(entry)
    by_part = dict(zip(tiny_model.encoders, stored.values(), strict=True))
    for before, after in zip(model.backbone.readers, changed.backbone.readers, strict=True):
        ((first, ids),) = after.words.items()
        assert first == ids[0]
        table = after.embedding.weight
        assert torch.equal(table[list(ids)], by_part[after.part])
        known = [token for token in range(before.vocabulary) if token not in ids]
        assert torch.equal(table[known], before.embedding.weight[known])
        assert after.tokens_of("a <toy>") == [*before.tokens_of("a"), *ids]
    # The word is its rows, in every text encoder: as a learned word that an attack puts in.
    columns = torch.cat([by_part[reader.part] for reader in changed.backbone.readers], dim=1)
    text = "a picture of a <toy>"
    learned = LearnedPrompt(text=text.replace("<toy>", "<it>"), placeholder="<it>", embedding=to_message(columns))
    word, given, without = encode(
        changed, [Conditioning(text=text), Conditioning(learned=learned), Conditioning(text="a picture of a")]
    )
    for name, tensor in word.tensors.items():
        torch.testing.assert_close(tensor, given.tensors[name], rtol=1e-5, atol=1e-5)
    assert not torch.equal(word.states, without.states)
    ids = changed.tokens_of(text)
    (by_ids,) = encode(changed, [Conditioning(token_ids=TokenIds(ids=ids))])
    assert all(torch.equal(tensor, by_ids.tensors[name]) for name, tensor in word.tensors.items())


def test_an_embedding_without_the_rows_of_a_text_encoder_is_refused(tiny_model: TinyModel) -> None:
    stored = named_rows(tiny_model)
    if len(stored) == 1:
        pytest.skip("one text encoder, one tensor")
    for key in stored:
        left = {name: rows for name, rows in stored.items() if name != key}
        catalogue = tiny_model.catalogue({"embedding": tiny_model.put(left), "token": "<toy>"})
        for check in (check_model, check_files):
            (problem,) = check(catalogue, "changed").problems
            assert (problem.part, problem.reason) == ("embedding", "WEIGHTS_INCOMPLETE")
            assert key in problem.what


@pytest.mark.parametrize("wrong", ["width", "rows", "further"])
def test_an_embedding_that_does_not_fit_is_refused(tiny_model: TinyModel, wrong: str) -> None:
    stored = named_rows(tiny_model)
    key = [*stored][-1]
    if wrong == "further":
        stored["gemma2_2b" if "gemma2_2b" not in stored else "clip_l"] = torch.ones(2, 7)
    elif wrong == "width":
        stored[key] = stored[key][:, 1:]
    elif len(stored) == 1:
        pytest.skip("one text encoder, one tensor")
    else:
        stored[key] = stored[key][:1]
    catalogue = tiny_model.catalogue({"embedding": tiny_model.put(stored), "token": "<toy>"})
    (problem,) = check_files(catalogue, "changed").problems
    assert problem.part == "embedding"
    assert problem.reason == ("WEIGHTS_UNKNOWN_TENSOR" if wrong == "further" else "WEIGHTS_WRONG_SHAPE")
