"""What every family must keep of prompts: token ids, learned words in each text encoder, gradients, distances."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers import transformer_flux
from torch import Tensor

from support.tiny_models import PROMPTS, TinyModel, saved
from support.tiny_pipelines import WORDS
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt, Target, TokenIds
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Case, Concept
from unerase_backend.attack.attacks import ring_a_bell
from unerase_backend.attack.prompts import gradients, vocabulary
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.catalogue.text_reach import TextReach, model_reaches
from unerase_backend.diffusion.conditioning import (
    encode,
    encode_tokens,
    prepare,
    tokenise,
    tokenise_ids,
    tokenise_learned,
    tokenise_searched,
)
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.diffusion.text_reader import TextReader
from unerase_backend.runtime.errors import InvalidRequestError

KNOWN = "hourglass"


def assert_same(one: Encoding, other: Encoding) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("text", [*PROMPTS, "", "the heart of the ring"])
def test_token_ids_are_the_text_that_they_write(tiny_model: TinyModel, text: str) -> None:
    model = tiny_model.model
    ids = model.tokens_of(text)
    assert model.text_of(ids).split() == text.split()
    both = [Conditioning(text=text), Conditioning(token_ids=TokenIds(ids=ids))]
    assert_same(*encode(model, both))


def test_an_id_outside_the_vocabulary_is_refused(tiny_model: TinyModel) -> None:
    outside = tiny_model.model.backbone.readers[0].vocabulary
    with pytest.raises(InvalidRequestError):
        prepare(tiny_model.model, Conditioning(token_ids=TokenIds(ids=[outside])))


def test_a_prompt_does_not_depend_on_its_neighbours(tiny_model: TinyModel) -> None:
    texts = [*PROMPTS, "", "the ring", "a blue toy"]
    together = encode(tiny_model.model, [Conditioning(text=text) for text in texts])
    for text, encoding in zip(texts, together, strict=True):
        (alone,) = encode(tiny_model.model, [Conditioning(text=text)])
        assert all(torch.equal(alone.tensors[name], tensor) for name, tensor in encoding.tensors.items())


def embedding_of(model: DiffusionModel, word: str) -> Tensor:
    """The rows of a word of one token in every text encoder, as it is behind another, side by side, (1, width)."""
    rows = []
    for reader in model.backbone.readers:
        _, token = reader.tokens_of(f"a {word}")
        rows.append(reader.embedding.weight.detach()[[token]])
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("text", ["a picture of a <it>", "a <it>", "a <it> of the <it>, red", "the <it>. A picture"])
def test_a_learned_word_with_a_words_rows_is_that_word(tiny_model: TinyModel, text: str) -> None:
    model = tiny_model.model
    embedding = to_message(embedding_of(model, KNOWN))
    learned = Conditioning(learned=LearnedPrompt(text=text, placeholder="<it>", embedding=embedding))
    assert_same(*encode(model, [learned, Conditioning(text=text.replace("<it>", KNOWN))]))


def test_each_text_encoder_reads_its_own_columns(tiny_model: TinyModel) -> None:
    model = tiny_model.model
    rows = embedding_of(model, KNOWN)
    start = 0
    for reader in model.backbone.readers:
        changed = rows.clone()
        changed[:, start : start + reader.width] += 1.0
        prompt = tokenise_learned(model, "a <it>", "<it>", 1)
        before, after = (encode_tokens(model, [prompt], [each]) for each in (rows, changed))
        assert any(not torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors), reader.part
        start += reader.width
    assert start == rows.shape[1]


def test_an_embedding_of_another_width_is_refused(tiny_model: TinyModel) -> None:
    rows = to_message(embedding_of(tiny_model.model, KNOWN)[:, 1:])
    learned = LearnedPrompt(text="a <it>", placeholder="<it>", embedding=rows)
    with pytest.raises(InvalidRequestError):
        prepare(tiny_model.model, Conditioning(learned=learned))


def in_float64(module: Any) -> Any:
    """A copy of a module in float64, and what its library computes in float32 as well."""
    copy = deepcopy(module).double()
    for name, norm in list(copy.named_modules()):
        if (kind := type(norm).__name__) in ("T5LayerNorm", "Gemma2RMSNorm"):
            weight = norm.weight + (kind == "Gemma2RMSNorm")
            other = torch.nn.RMSNorm(weight.shape, getattr(norm, "variance_epsilon", None) or norm.eps)
            other.weight = torch.nn.Parameter(weight, requires_grad=False)
            owner, _, last = name.rpartition(".")
            setattr(copy.get_submodule(owner), last, other)
    return copy


def turned(values: Tensor, by: tuple[Tensor, Tensor], sequence_dim: int) -> Tensor:
    """diffusers' `apply_rotary_emb` for values (rows, tokens, heads, width), which turns pairs in float32."""
    assert sequence_dim == 1
    cosine, sine = (each.to(values)[:, None] for each in by)
    first, second = values.unflatten(-1, (-1, 2)).unbind(-1)
    return values * cosine + torch.stack([-second, first], dim=-1).flatten(-2) * sine


@pytest.fixture(scope="session")
def exact(tiny_model: TinyModel) -> DiffusionModel:
    """The model in float64."""
    modules = {part: in_float64(module) for part, module in tiny_model.model.backbone.modules.items()}
    backbone = tiny_model.model.backbone.with_modules(modules)
    return replace(tiny_model.model, backbone=backbone, dtype=torch.float64)


def test_gradients_through_encoding_and_prediction_are_finite_differences(
    tiny_model: TinyModel, exact: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a learned word's rows in all text encoders together, and at the latents."""
    monkeypatch.setattr(transformer_flux, "apply_rotary_emb", turned)
    draws = torch.Generator().manual_seed(5)
    prompt = tokenise_learned(exact, "a picture of a <it>", "<it>", 1)
    rows = embedding_of(exact, KNOWN).double()
    latents = torch.randn((1, *exact.latent_shape), generator=draws, dtype=torch.float64)
    wanted = torch.randn(latents.shape, generator=draws, dtype=torch.float64)
    times = exact.schedule.times_at(torch.tensor([400]))

    def loss(given: Tensor, noised: Tensor) -> Tensor:
        output = exact.predict(noised, times, encode_tokens(exact, [prompt], [given]))
        return (wanted - output).square().mean()

    at = rows.clone().requires_grad_(), latents.clone().requires_grad_()
    found = torch.autograd.grad(loss(*at), at)
    start = 0
    pieces = [reader.width for reader in exact.backbone.readers]
    directions = []
    for width in pieces:
        direction = torch.zeros_like(rows)
        direction[:, start : start + width] = torch.randn((1, width), generator=draws, dtype=torch.float64)
        directions.append((direction, torch.zeros_like(latents)))
        start += width
    directions.append((torch.zeros_like(rows), torch.randn(latents.shape, generator=draws, dtype=torch.float64)))
    step, tolerance = (3e-3, 2e-2) if tiny_model.tiny.rounded else (1e-5, 1e-4)
    for of_rows, of_latents in directions:
        with torch.no_grad():
            ahead = loss(rows + step * of_rows, latents + step * of_latents)
            behind = loss(rows - step * of_rows, latents - step * of_latents)
        slope = (found[0] * of_rows).sum() + (found[1] * of_latents).sum()
        assert slope.abs() > 1e-8
        torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=tolerance, atol=1e-9)


def test_the_attacks_gradients_are_each_rows_own(tiny_model: TinyModel) -> None:
    """Of searched tokens, alone as for P4D and before words as for UnlearnDiffAtk."""
    model, draws = tiny_model.model, torch.Generator().manual_seed(6)
    table = vocabulary(model).embeddings
    prompts = [tokenise_searched(model, 2), tokenise_searched(model, 2, model.tokens_of("red heart"))]
    embeddings = table[torch.randint(len(table), (2, 2), generator=draws)]
    noisy = torch.randn((2, *model.latent_shape), generator=draws)
    wanted = torch.randn(noisy.shape, generator=draws)
    times = model.schedule.times_at(torch.tensor([300, 700]))
    losses, found = gradients(model, prompts, embeddings, noisy, times, wanted)
    for row, prompt in enumerate(prompts):
        at = embeddings[row].clone().requires_grad_()
        output = model.predict(noisy[[row]], times[[row]], encode_tokens(model, [prompt], [at]))
        loss = (wanted[row] - output[0]).square().mean()
        (expected,) = torch.autograd.grad(loss, [at])
        assert losses[row].item() == pytest.approx(loss.item(), rel=1e-4)
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-5)
        assert expected.abs().max() > 0


def test_tokens_that_a_search_puts_in_are_the_prompt_of_their_ids(tiny_model: TinyModel) -> None:
    """A text encoder with a vocabulary of its own reads nothing of them while they are searched."""
    model = tiny_model.model
    words = vocabulary(model)
    place = words.ids.tolist().index(model.tokens_of(KNOWN)[0])
    searched = encode_tokens(model, [tokenise_searched(model, 1)], [words.embeddings[[place]]])
    given = encode_tokens(model, [tokenise_ids(model, [int(words.ids[place])])], [None])
    if len(model.backbone.searched) == len(model.backbone.readers):
        assert_same(searched, given)
    for reader in model.backbone.searched:
        (frame,) = (tokenise_searched(model, 1).frames[model.backbone.readers.index(reader)],)
        assert frame.learned_at


def test_a_search_leaves_out_tokens_that_spell_the_concept(tiny_model: TinyModel) -> None:
    model = tiny_model.model
    ids = set(vocabulary(model).ids.tolist())
    without = set(vocabulary(model, [KNOWN]).ids.tolist())
    (token,) = model.tokens_of(KNOWN)
    assert token in ids - without
    for other in WORDS:
        if other != KNOWN:
            assert set(model.tokens_of(other)) <= without
    # Neither start nor end nor padding is a word.
    assert ids.isdisjoint(model.tokenizer.all_special_ids)


def test_ring_a_bells_targets_and_distances(tiny_model: TinyModel) -> None:
    """Squared distances to a prompt moved along the mean difference of prompts with and without the concept's name.

    Pooled encodings count as much as makes the direction as long in them as in the states; what a mask hides counts
    nothing.
    """
    model = tiny_model.model
    templates = ["a picture of a {concept}", "the {concept}"]
    concept = Concept(name=KNOWN, kind=CONCEPT_KIND_OBJECT, names=[KNOWN], prompts=templates, initial_token="thing")
    unit = Unit(target=Target(concept=concept), cases=[Case(prompt=f"a {KNOWN}")])
    (target,) = ring_a_bell.targets(unit, model, 1.5)
    pairs = [[_numbers(tiny_model, each.replace("{concept}", word)) for word in (KNOWN, "thing")] for each in templates]
    direction = {name: np.mean([one[name] - other[name] for one, other in pairs], 0) for name in pairs[0][0]}
    wanted = {name: values + 1.5 * direction[name] for name, values in _numbers(tiny_model, "a thing").items()}
    assert np.abs(direction["states"]).max() > 1e-3
    weights = {name: np.square(direction["states"]).sum() / np.square(each).sum() for name, each in direction.items()}
    assert set(weights) == {"states", "pooled"} & set(tiny_model.encoded(["a toy"]).tensors)
    ids = torch.tensor([[model.tokens_of(word)[0] for word in pair] for pair in (("red", "ring"), ("a", "toy"))])
    found = ring_a_bell._distances(model, ids, target)
    for row, pair in enumerate(ids.tolist()):
        read = _read(encode_tokens(model, [tokenise_ids(model, pair)], [None]))
        expected = sum(weights[name] * np.square(read[name] - wanted[name]).sum() for name in weights)
        assert found[row].item() == pytest.approx(expected, rel=1e-4)


def _numbers(tiny_model: TinyModel, text: str) -> dict[str, np.ndarray]:
    return _read(tiny_model.encoded([text]))


def _read(encoding: Encoding) -> dict[str, np.ndarray]:
    """What a denoiser reads of a single prompt."""
    of_row = {name: tensor[0].double().detach().numpy() for name, tensor in encoding.tensors.items()}
    read = {name: of_row[name] for name in ("states", "pooled") if name in of_row}
    for place, counts in enumerate(of_row.get("mask", ())):
        read["states"][place] *= counts
    return read


def test_what_is_cut_is_known(tiny_model: TinyModel) -> None:
    model = tiny_model.model
    assert not tokenise(model, PROMPTS[0]).truncated
    assert tokenise(model, " ".join(["toy"] * 400)).truncated
    assert tokenise(model, "").empty


@pytest.mark.parametrize(
    "text", ["A Picture of a HEART", "  the ring ", "a red heart " * 6, "THE RING " * 9, "\u0130 heart"]
)
def test_planning_knows_how_much_is_read(tiny_model: TinyModel, text: str) -> None:
    entry = tiny_model.tiny.entry
    reaches = model_reaches(tiny_model.folder / "pipeline", (), entry.get("max_sequence_length"))
    for place, reader in enumerate(tiny_model.model.backbone.readers):
        frame, read = tokenise(tiny_model.model, text).frames[place], reaches_of(reader, reaches).read(text)
        assert (read.tokens, read.cut) == (len(reader.tokens_of(text)), frame.truncated)
        part = text[: read.end] if read.cut else text
        assert len(reader.tokens_of(part)) >= frame.words


def test_a_length_without_room_for_the_end_is_refused(tiny_model: TinyModel) -> None:
    whole = {"pipeline": "pipeline", "resolution": tiny_model.tiny.resolution, "max_sequence_length": 0}
    catalogue, backbone = tiny_model.catalogue(short=whole), tiny_model.model.backbone
    found = check_model(catalogue, "short")
    assert any("is not used" in note for note in found.notes) == (not backbone.default_sequence_length)
    if all(backbone.parts[reader.part].kind.startswith("CLIP") for reader in backbone.readers):
        assert not found.problems
    else:
        assert [problem.what for problem in found.problems if "max_sequence_length is 0" in problem.what]


def test_other_models_of_the_same_files_have_other_digests(tiny_model: TinyModel) -> None:
    whole = {"pipeline": "pipeline", "resolution": tiny_model.tiny.resolution, **tiny_model.tiny.entry}
    others = {
        "same": whole,
        "longer": {**whole, "max_sequence_length": 13},
        "larger": {**whole, "resolution": 2 * tiny_model.tiny.resolution},
    }
    catalogue = tiny_model.catalogue(**others)
    base, same, longer, larger = (catalogue.describe_model(name).digest for name in ("base", *others))
    assert same == base != larger
    assert (longer != base) == bool(tiny_model.model.backbone.default_sequence_length)


def test_what_an_index_sets_is_part_of_the_digest(tmp_path: Path) -> None:
    model = saved("stable-diffusion-xl", tmp_path)
    file = tmp_path / "pipeline" / "model_index.json"
    index, digests = json.loads(file.read_text()), []
    for zeros in (True, False):
        file.write_text(json.dumps({**index, "force_zeros_for_empty_prompt": zeros}))
        digests.append(model.catalogue().describe_model("base").digest)
    del index["force_zeros_for_empty_prompt"]
    file.write_text(json.dumps(index))
    assert model.catalogue().describe_model("base").digest == digests[0] != digests[1]


def reaches_of(reader: TextReader, reaches: Sequence[TextReach]) -> TextReach:
    """The reach of a text encoder; reaches are in the order of the folder's tokenizers."""
    return next(each for each in reaches if each.tokenizer.get_vocab() == reader.tokenizer.get_vocab())
