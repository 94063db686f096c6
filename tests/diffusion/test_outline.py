"""Parameters with two names, and what libraries compute and store nowhere, against the libraries' own loading."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.model_files import WeightFiles
from unerase_backend.catalogue.tensor_names import TIED
from unerase_backend.catalogue.tensors import StoredTensor, part_tensors
from unerase_backend.diffusion import weights
from unerase_backend.diffusion.outline import cast, computed, fillable, outline, second_names, weights_of
from unerase_backend.runtime.errors import UnsafeModelError

SHARED, TIED_TO = "shared.weight", "encoder.embed_tokens.weight"


def t5() -> Any:
    config = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(**config)).eval()


def gemma() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    return Gemma2Model(Gemma2Config(vocab_size=20, num_attention_heads=2, num_key_value_heads=1, **sizes)).eval()


def pixart() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16}
    return PixArtTransformer2DModel(in_channels=4, num_layers=1, sample_size=8, **sizes).eval()


def clip() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=20, max_position_embeddings=12, **sizes)).eval()


def unet() -> Any:
    blocks: dict[str, Any] = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return UNet2DConditionModel(block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=16, **blocks).eval()


ALL = (t5, gemma, pixart, clip, unet)
Read = Callable[[dict[str, Tensor]], dict[str, StoredTensor]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Stores a T5's tensors and reads the headers, as a catalogue does."""

    def store(state: dict[str, Tensor], kind: str = "T5EncoderModel") -> dict[str, StoredTensor]:
        path, findings = tmp_path / "model.safetensors", Findings("model")
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
        found = part_tensors("text_encoder", kind, WeightFiles((path,)), findings)
        assert found is not None, findings.conclude().problems
        return found

    return store


def filled(make: Callable[[], Any], tensors: dict[str, StoredTensor], dtype: torch.dtype = torch.float32) -> Any:
    module = fillable(outline(make), make)
    weights.fill(module, tensors, dtype)
    return module.eval()


@pytest.mark.parametrize("make", ALL)
def test_a_filled_module_is_the_librarys_own(make: Callable[[], Any], read: Read) -> None:
    torch.manual_seed(0)
    own = make()
    state = torch.get_rng_state()
    loaded = filled(make, partial(read, kind=type(own).__name__)(weights_of(own)))
    assert torch.equal(torch.get_rng_state(), state)
    wanted = {**own.state_dict(), **computed(own)}
    assert wanted.keys() == {**loaded.state_dict(), **computed(loaded)}.keys()
    for name, tensor in {**loaded.state_dict(), **computed(loaded)}.items():
        assert torch.equal(tensor, wanted[name]), name
        assert tensor.dtype == wanted[name].dtype


@pytest.mark.parametrize("make", ALL)
def test_an_outline_has_no_memory(make: Callable[[], Any]) -> None:
    module = outline(make)
    assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in make().state_dict().items()
    }


def test_only_what_is_computed_has_memory_before_weights_come() -> None:
    made = fillable(outline(pixart), pixart)
    assert [name for name, tensor in made.named_buffers() if not tensor.is_meta] == ["pos_embed.pos_embed"]
    assert all(parameter.is_meta for parameter in made.parameters())


def test_the_names_that_files_are_known_by_are_the_modules_own() -> None:
    for make in ALL:
        assert second_names(outline(make)) == TIED.get(type(make()).__name__, {})


@pytest.mark.parametrize("names", [(SHARED,), (TIED_TO,), (SHARED, TIED_TO), (TIED_TO, SHARED)])
def test_a_tensor_with_two_names_is_filled_once(names: tuple[str, ...], read: Read) -> None:
    torch.manual_seed(0)
    own = t5()
    state = {name: tensor for name, tensor in own.state_dict().items() if name not in (SHARED, TIED_TO)}
    state |= dict.fromkeys(names, own.shared.weight.detach())
    tensors = read(state)
    assert tensors.keys() == weights_of(own).keys()
    loaded = filled(t5, tensors)
    ids = torch.tensor([[3, 5, 1, 0]])
    assert torch.equal(loaded(ids)[0], own(ids)[0])
    for change in (lambda: None, loaded.double, lambda: cast(loaded, torch.bfloat16), lambda: loaded.to("cpu")):
        change()
        assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    held = {tensor.data_ptr(): tensor.numel() for tensor in loaded.state_dict().values()}
    assert sum(held.values()) == sum(tensor.numel() for tensor in weights_of(own).values())


def test_a_tensor_with_two_values_is_refused(read: Read) -> None:
    state = dict(t5().state_dict())
    state[TIED_TO] = state[SHARED] + 1
    tensors = read(state)
    for use in (filled, lambda make, given: weights.replace(make(), given)):
        with pytest.raises(UnsafeModelError, match="are one tensor of the model, and differ") as refused:
            use(t5, tensors)
        assert refused.value.reason == "WEIGHTS_AMBIGUOUS"


def test_two_shapes_under_the_names_of_one_tensor_are_ambiguous(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in t5().state_dict().items()}
    save_file({**state, TIED_TO: torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    findings = Findings("model")
    files = WeightFiles((tmp_path / "model.safetensors",))
    assert part_tensors("text_encoder", "T5EncoderModel", files, findings) is None
    assert [problem.reason for problem in findings.conclude().problems] == ["WEIGHTS_AMBIGUOUS"]


def test_replacing_a_tensor_by_its_second_name(read: Read) -> None:
    module, rows = t5(), torch.randn(20, 16)
    weights.replace(module, read({TIED_TO: rows}))
    assert torch.equal(module.shared.weight, rows)
    assert module.encoder.embed_tokens.weight is module.shared.weight


def test_rounding_leaves_what_is_computed() -> None:
    module = gemma()
    exact = {name: tensor.clone() for name, tensor in computed(module).items()}
    cast(module, torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    for name, tensor in computed(module).items():
        assert torch.equal(tensor, exact[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_half_precision_would_overflow_is_kept_as_the_library_keeps_it(
    dtype: torch.dtype, tmp_path: Path, read: Read
) -> None:
    own = t5()
    own.save_pretrained(tmp_path / "saved")
    theirs = T5EncoderModel.from_pretrained(tmp_path / "saved", dtype=dtype)
    wanted = {name: parameter.dtype for name, parameter in theirs.named_parameters()}
    assert len(set(wanted.values())) == (2 if dtype == torch.float16 else 1)
    loaded = filled(t5, read(weights_of(own)), dtype)
    assert {name: parameter.dtype for name, parameter in loaded.named_parameters()} == wanted
    changed = filled(t5, read(weights_of(own)))
    cast(changed, dtype)
    assert {name: parameter.dtype for name, parameter in changed.named_parameters()} == wanted
