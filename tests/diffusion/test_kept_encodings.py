"""Encodings that are kept: shared by models that read prompts alike, bounded, and apart from the device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from unerase.internal.v1alpha1.generation_pb2 import Interpolation, ModelChange
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion import kept_encodings
from unerase_backend.diffusion.conditioning import encode, tokenise
from unerase_backend.diffusion.kept_encodings import KeptPrompts
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel

CPU = torch.device("cpu")
PROMPTS = [Conditioning(text=text) for text in ("a picture of a hourglass", "", "a red heart")]


def load(catalogue: Catalogue, name: str, *changes: ModelChange) -> DiffusionModel:
    return load_model(catalogue, name, CPU, torch.float32, changes=changes, digest="derived" if changes else "")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Conditioning]:
    """What is encoded, in order."""
    seen: list[Conditioning] = []
    monkeypatch.setattr(
        kept_encodings.conditioning, "encode", lambda model, items: seen.extend(items) or encode(model, items)
    )
    return seen


def test_models_share_what_they_read_alike(catalogue: Catalogue, encoded: list[Conditioning]) -> None:
    kept = KeptPrompts()
    reference, erased, never = (load(catalogue, f"testbed/{name}") for name in ("reference", "uce", "never"))
    first = kept.encode(reference, PROMPTS)
    assert encoded == PROMPTS
    for one, other in zip(first, kept.encode(erased, PROMPTS[::-1])[::-1], strict=True):
        assert torch.equal(one.states, other.states)
    assert encoded == PROMPTS
    (others, *_) = kept.encode(never, PROMPTS)
    assert encoded == PROMPTS * 2
    assert not torch.equal(others.states, first[0].states)


def test_what_reads_otherwise_has_another_digest(catalogue: Catalogue) -> None:
    between = [ModelChange(interpolation=Interpolation(model="testbed/never", share=share)) for share in (0.25, 0.5)]
    models = [
        *(load(catalogue, f"testbed/{name}") for name in ("reference", "never", "redirected")),
        *(load(catalogue, "testbed/reference", change) for change in between),
    ]
    assert len({model.text_digest for model in models}) == len(models)
    assert load(catalogue, "testbed/esd-u").text_digest == models[0].text_digest


def test_a_model_of_unknown_files_shares_with_none(model: DiffusionModel) -> None:
    one, other = replace(model, text_digest=""), replace(model, text_digest="")
    assert one.text_digest != other.text_digest


def test_no_more_is_kept_than_fits(model: DiffusionModel, encoded: list[Conditioning]) -> None:
    (size,) = (each.size_bytes for each in encode(model, PROMPTS[:1]))
    kept = KeptPrompts(most_bytes=2 * size)
    for item in [*PROMPTS, PROMPTS[2], PROMPTS[1], PROMPTS[0], PROMPTS[1]]:
        kept.encode(model, [item])
    assert encoded == [*PROMPTS, PROMPTS[0]]


def test_a_text_encoder_that_waits_says_the_same_and_leaves_the_device(model: DiffusionModel) -> None:
    (reader,) = model.backbone.readers
    apart = model.backbone.with_modules({})
    apart.readers = (replace(reader, visits=torch.device("cpu")),)
    places = [tensor.data_ptr() for tensor in reader.encoder.parameters()]
    ours, theirs = (encode(replace(model, backbone=each), PROMPTS) for each in (apart, model.backbone))
    assert all(torch.equal(one.states, other.states) for one, other in zip(ours, theirs, strict=True))
    assert [tensor.data_ptr() for tensor in reader.encoder.parameters()] == places


def test_weights_that_do_not_all_fit_on_the_device_wait_again(model: DiffusionModel) -> None:
    (reader,) = model.backbone.readers
    apart = replace(reader, visits=torch.device("cpu"))
    last = [*reader.encoder.parameters()][-1]
    places = [tensor.data_ptr() for tensor in reader.encoder.parameters()]

    class Full(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.to:
                if args[0].data_ptr() == last.data_ptr():
                    raise torch.OutOfMemoryError("full")
                return args[0].clone()
            return function(*args, **(kwargs or {}))

    frame = tokenise(model, "a red heart").frames[0]
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), Full(), pytest.raises(torch.OutOfMemoryError):
            apart.read([frame], [None])
        assert [tensor.data_ptr() for tensor in reader.encoder.parameters()] == places


def test_a_tokenizers_files_are_part_of_the_digest(tiny: Path, load_tiny: object) -> None:
    before = load_tiny().text_digest  # type: ignore[operator]
    (tiny / "pipeline" / "tokenizer" / "special_tokens_map.json").write_text("{}")
    assert load_tiny().text_digest != before  # type: ignore[operator]
