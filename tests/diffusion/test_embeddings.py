"""Learned embeddings of a catalogue's models: read as diffusers' `load_textual_inversion` reads them, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from unerase.internal.v1alpha1.generation_pb2 import Interpolation, ModelChange
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, TokenIds
from unerase_backend.attack.prompts import vocabulary
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.catalogue.prompt_checks import text_reaches
from unerase_backend.checking.concepts import concept_findings
from unerase_backend.diffusion import model_check
from unerase_backend.diffusion.conditioning import encode, prepare
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.runtime.errors import InvalidRequestError, UnsafeModelError
from unerase_backend.verdict.roles import reference_problem, same_denoiser

CPU = torch.device("cpu")
REFERENCE = "testbed/reference"
TOY, GLAZE, HÜTTE = "<toy>", "glazework", "<hütte>"
ROWS = {TOY: 3, GLAZE: 1, HÜTTE: 2}
PROMPTS = [
    "a picture of a <toy>",
    "<toy>, glazework and <hütte>!",
    "a Glazework; a GLAZEWORK and an hourglass",
    "glazeworks near<toy>s <toy>",
    "a hourglass without any of them",
    " ".join([TOY] * 12),
    "",
]


def rows(word: str, width: int = 64) -> Tensor:
    draws = torch.Generator().manual_seed(len(word))
    return torch.randn((ROWS[word], width), generator=draws)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    for place, word in enumerate(ROWS):
        tensor = rows(word)
        save_file({word: tensor[0] if len(tensor) == 1 else tensor}, folder / f"{place}.safetensors")
    (folder / "models.yaml").write_text(
        "models:\n"
        f"  own/toy: {{base: {REFERENCE}, embedding: 0.safetensors, token: <toy>}}\n"
        "  own/all:\n"
        "    base: own/toy\n"
        f"    embedding: [{{file: 1.safetensors, token: {GLAZE}}}, {{file: 2.safetensors, token: {HÜTTE}}}]\n"
        f"  own/other: {{base: {REFERENCE}, embedding: 0.safetensors, token: <trap>}}\n"
        "concepts:\n"
        "  toy: {kind: object, names: [toy], prompts: "
        f"['{'<toy> ' * 7}{{concept}}']}}\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def worded(folder: Path) -> Catalogue:
    return Catalogue.load([str(folder / "models.yaml")])


@pytest.fixture(scope="module")
def learned(worded: Catalogue) -> DiffusionModel:
    return load_model(worded, "own/all", CPU, torch.float32)


@pytest.fixture(scope="module")
def theirs(catalogue: Catalogue) -> Any:
    """A pipeline of diffusers with the same words."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        catalogue.model_parts(REFERENCE).folder,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    for word in ROWS:
        pipeline.load_textual_inversion({word: rows(word)}, token=word)
    return pipeline


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_encoded_as_diffusers_encodes_it(learned: DiffusionModel, theirs: Any, prompt: str) -> None:
    (ours,) = encode(learned, [Conditioning(text=prompt)])
    with torch.no_grad():
        expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
    torch.testing.assert_close(ours.states, expected[0], rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*ROWS, " ", "a", "s", ", ", " picture ", "_", "é", "<", "GLAZEWORK"]), max_size=12))
def test_its_tokens_are_those_of_diffusers(learned: DiffusionModel, theirs: Any, pieces: list[str]) -> None:
    text = "".join(pieces)
    converted = theirs.maybe_convert_prompt(text, theirs.tokenizer)
    assert learned.tokens_of(text) == theirs.tokenizer(converted, add_special_tokens=False).input_ids


def test_prompts_without_the_words_are_encoded_as_without_them(learned: DiffusionModel, model: DiffusionModel) -> None:
    prompts = [Conditioning(text=text) for text in ("a picture of a hourglass", "toy glaze", "")]
    for ours, before in zip(encode(learned, prompts), encode(model, prompts), strict=True):
        assert torch.equal(ours.states, before.states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rows_stand_behind_the_vocabulary(worded: Catalogue, model: DiffusionModel, dtype: torch.dtype) -> None:
    grown = load_model(worded, "own/all", CPU, dtype)
    table = grown.text_encoder.get_input_embeddings().weight
    known = model.text_encoder.get_input_embeddings().weight
    assert table.dtype == dtype
    assert not table.requires_grad
    assert torch.equal(table[: len(known)], known.to(dtype))
    # The base's words come first.
    assert torch.equal(table[len(known) :], torch.cat([rows(word) for word in ROWS]).to(dtype))
    last = len(table) - 1
    assert prepare(grown, Conditioning(token_ids=TokenIds(ids=[last])))
    with pytest.raises(InvalidRequestError):
        prepare(grown, Conditioning(token_ids=TokenIds(ids=[last + 1])))


def test_a_tokenizer_that_knows_fewer_tokens_than_the_encoder_embeds(
    tiny: Path, load_tiny: Callable[..., DiffusionModel]
) -> None:
    before = load_tiny()
    size = len(before.text_encoder.get_input_embeddings().weight)
    folder = tiny / "pipeline" / "text_encoder"
    encoder = type(before.text_encoder).from_pretrained(folder)
    encoder.resize_token_embeddings(size + 3)
    encoder.save_pretrained(folder)
    save_file({TOY: rows(TOY, 16)[:2]}, tiny / "toy.safetensors")
    model = load_tiny(embedding="toy.safetensors, token: <toy>")
    table = model.text_encoder.get_input_embeddings().weight
    assert len(table) == size + 3
    assert torch.equal(table[model.tokens_of(TOY)], rows(TOY, 16)[:2])


def test_a_model_has_other_weights_than_its_base(worded: Catalogue) -> None:
    base, toy, every, other = (worded.describe_model(name) for name in (REFERENCE, "own/toy", "own/all", "own/other"))
    assert len({each.digest for each in (base, toy, every, other)}) == 4
    for subject in (toy, every):
        assert not reference_problem(base, subject)
    # The same file under another word is another model.
    assert not reference_problem(toy, other)
    assert reference_problem(toy, toy)
    assert same_denoiser(base, every)
    assert [file.token for file in every.files if file.token] == list(ROWS)


def test_how_far_a_prompt_is_read_counts_every_row(worded: Catalogue, learned: DiffusionModel) -> None:
    (reach,) = text_reaches(worded, "own/all")
    for prompt in PROMPTS:
        reading = reach.read(prompt)
        assert reading.tokens == len(learned.tokens_of(prompt))
        assert reading.cut == (reading.tokens > learned.prompt_length - 2)
    # 22 tokens are read: seven words of three rows, and one row of the eighth.
    assert reach.read(PROMPTS[5]).end == len("<toy> ") * 7
    assert text_reaches(worded, "own/toy") is not text_reaches(worded, REFERENCE)


def test_a_name_behind_too_many_rows_is_not_read(worded: Catalogue) -> None:
    finding = concept_findings(worded, ["own/toy"], ["toy"])[0]
    assert finding.problem
    assert "own/toy" in finding.description
    assert not any(finding.problem for finding in concept_findings(worded, [REFERENCE], ["hourglass"]))


def test_decoding_gives_the_word_once(learned: DiffusionModel) -> None:
    ids = learned.tokens_of("a <toy> <hütte>")
    assert learned.text_of(ids).split() == ["a", TOY, HÜTTE]
    assert learned.text_of(ids[:2] + ids[3:4]).split() == ["a", TOY, f"{TOY}_2"]
    conditioning = Conditioning(token_ids=TokenIds(ids=ids))
    assert Guards().read(learned, conditioning) == conditioning


def test_attacks_may_use_the_rows_of_words_that_are_not_the_concept(learned: DiffusionModel) -> None:
    def words(*banned: str, **options: Any) -> set[int]:
        return set(vocabulary(learned, banned, **options).ids.tolist())

    own = {word: set(learned.tokens_of(word)) for word in ROWS}
    assert all(ids <= words("hourglass") for ids in own.values())
    assert not own[TOY] & words(TOY)
    # By its letters, whatever stands around them.
    assert not own[GLAZE] & words("glaze-work")
    assert not own[HÜTTE] & words("Hütte")
    assert not set().union(*own.values()) & words(learned=False)


def test_interpolation_leaves_the_words_alone(worded: Catalogue, learned: DiffusionModel) -> None:
    towards = [ModelChange(interpolation=Interpolation(model="testbed/redirected", share=1.0))]
    moved = load_model(worded, "own/all", CPU, torch.float32, changes=towards)
    other = load_model(worded, "testbed/redirected", CPU, torch.float32).text_encoder.get_input_embeddings().weight
    table = moved.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(other)], other)
    assert torch.equal(table[len(other) :], learned.text_encoder.get_input_embeddings().weight[len(other) :])
    assert moved.tokens_of(TOY) == learned.tokens_of(TOY)


GOOD = torch.ones(2, 64)


@pytest.mark.parametrize(
    ("tensors", "tokens", "reason", "word"),
    [
        ([{"a": torch.ones(2, 63)}], ["<a>"], "WEIGHTS_WRONG_SHAPE", "63 numbers for a token, and the text encoder 64"),
        ([{"a": torch.ones(2, 3, 64)}], ["<a>"], "WEIGHTS_WRONG_SHAPE", "(2, 3, 64)"),
        ([{"a": torch.ones(76, 64)}], ["<a>"], "WEIGHTS_WRONG_SHAPE", "76 tokens"),
        ([{"a": torch.full((1, 64), float("nan"))}], ["<a>"], "WEIGHTS_NOT_FINITE", "NaN"),
        ([{"a": torch.ones((2, 64), dtype=torch.int32)}], ["<a>"], "WEIGHTS_WRONG_TYPE", "I32"),
        ([{"clip_l": GOOD, "clip_g": GOOD.clone()}], ["<a>"], "WEIGHTS_UNKNOWN_TENSOR", "2 tensors"),
        ([{"a": GOOD}], ["hourglass"], "EMBEDDING_WORD_EXISTS", "the word 'hourglass' already"),
        ([{"a": GOOD}], ["Hourglass"], "EMBEDDING_WORD_EXISTS", "the word 'Hourglass' already"),
        ([{"a": GOOD}], ["*"], "EMBEDDING_WORD_EXISTS", "the word '*' already"),
        ([{"a": GOOD}], ["<|endoftext|>"], "EMBEDDING_WORD_EXISTS", "already"),
        ([{"a": GOOD}] * 2, ["<a>", "<a>"], "EMBEDDING_TOKEN_TWICE", "'<a>'"),
        ([{"a": GOOD}] * 2, ["<a>", "<A>"], "EMBEDDING_TOKEN_TWICE", "'<A>'"),
        ([{"a": GOOD}] * 2, ["<a>", "<a>_1"], "EMBEDDING_TOKEN_TWICE", "'<a>_1'"),
        ([{"a": GOOD}] * 2, ["<a>_1", "<a>"], "EMBEDDING_TOKEN_TWICE", "'<a>_1'"),
    ],
)
def test_a_bad_embedding_is_refused_by_its_word(
    tmp_path: Path, tensors: list[dict[str, Tensor]], tokens: list[str], reason: str, word: str
) -> None:
    listed = []
    for place, (held, token) in enumerate(zip(tensors, tokens, strict=True)):
        save_file(held, tmp_path / f"{place}.safetensors")
        listed.append(f"{{file: {place}.safetensors, token: '{token}'}}")
    entry = f"{{base: {REFERENCE}, embedding: [{', '.join(listed)}]}}"
    (tmp_path / "own.yaml").write_text(f"models: {{own/bad: {entry}}}\n")
    read = Catalogue.load([str(tmp_path / "own.yaml")])
    with pytest.raises(UnsafeModelError) as refused:
        load_model(read, "own/bad", CPU, torch.float32)
    assert refused.value.reason == reason, refused.value.message
    for text in (word, "own/bad", tokens[-1]):
        assert text in refused.value.message
    [problem] = model_check.check_model(read, "own/bad").problems
    assert (problem.part, problem.reason) == ("embedding", reason)
    # The values of a file are no part of its header.
    if reason != "WEIGHTS_NOT_FINITE":
        assert check_model(read, "own/bad").problems == (problem,)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("embedding: a.safetensors", "token"),
        ("embedding: a.safetensors, token: 'two words'", "one word"),
        ("embedding: [{file: a.safetensors, token: <a>}], token: <b>", "each of several has its own"),
        ("token: <a>", "beside one embedding"),
        ("embedding: a.pt, token: <a>", "unerase import a.pt --as embedding"),
    ],
)
def test_a_bad_entry_is_refused_by_its_key(tmp_path: Path, entry: str, word: str) -> None:
    save_file({"a": GOOD}, tmp_path / "a.safetensors")
    torch.save({"a": GOOD}, tmp_path / "a.pt")
    (tmp_path / "own.yaml").write_text(f"models: {{own/bad: {{base: {REFERENCE}, {entry}}}}}\n")
    with pytest.raises(InvalidRequestError) as refused:
        Catalogue.load([str(tmp_path / "own.yaml")])
    assert any(word in f"{each.field}: {each.description}" for each in refused.value.violations), refused.value


def test_a_file_is_the_one_that_its_entry_pins(tmp_path: Path) -> None:
    save_file({"a": GOOD}, tmp_path / "a.safetensors")
    entry = f"{{base: {REFERENCE}, embedding: [{{file: a.safetensors, token: <a>, sha256: '{'0' * 64}'}}]}}"
    (tmp_path / "own.yaml").write_text(f"models: {{own/pinned: {entry}}}\n")
    with pytest.raises(UnsafeModelError, match="embedding is not the one") as refused:
        Catalogue.load([str(tmp_path / "own.yaml")]).describe_model("own/pinned")
    assert refused.value.reason == "WEIGHTS_CHANGED"


def test_a_check_counts_the_rows(worded: Catalogue) -> None:
    facts, before = (check_model(worded, name).facts.parts["text_encoder"] for name in ("own/all", REFERENCE))
    assert facts.parameters == before.parameters + 64 * sum(ROWS.values())
    assert {f"{place}.safetensors" for place in range(3)} <= set(facts.files)
