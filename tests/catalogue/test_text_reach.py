"""What text encoders read: against the ids that the model's own tokenisation keeps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.entries import ConceptEntry
from unerase_backend.catalogue.prompt_checks import (
    cut_labels,
    label_reach,
    reads_a_name,
    text_reaches,
    unread_everywhere,
    unread_names,
)
from unerase_backend.catalogue.text_reach import TextReach, furthest, judge_reach, model_reaches
from unerase_backend.runtime.errors import UnsafeModelError

REFERENCE = EMBEDDED.parent / "reference"
# The testbed's encoder reads 24 tokens, start and end among them.
READ = 22


@pytest.fixture(scope="module")
def reach() -> TextReach:
    (found,) = model_reaches(REFERENCE)
    return found


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(REFERENCE / "tokenizer")


def entry(**fields: object) -> ConceptEntry:
    return ConceptEntry.model_validate({"kind": "object", "names": ["hourglass"], **fields})


@given(words=st.lists(st.sampled_from(["red", "hourglass", "hour_glass", "Café", "砂時計", "x,y"]), max_size=40))
def test_a_word_is_read_if_the_tokens_up_to_its_end_are_kept(
    reach: TextReach, tokenizer: CLIPTokenizer, words: list[str]
) -> None:
    """Word by word: what the model's tokenizer makes of the words one after another."""
    text, reading = " ".join(words), reach.read(" ".join(words))
    tokens = place = 0
    for word in words:
        tokens += len(tokenizer(word, add_special_tokens=False).input_ids)
        place += len(word)
        assert (place <= reading.end) == (tokens <= READ)
        place += 1
    assert (reading.tokens, reading.limit, reading.cut) == (tokens, READ, tokens > READ)
    assert tokens == len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


@pytest.mark.parametrize(("filler", "whole"), [(21, True), (22, False), (200, False)])
def test_a_name_is_read_up_to_the_last_token(reach: TextReach, filler: int, whole: bool) -> None:
    text = "very " * filler + "hourglass"
    assert reads_a_name(text, ["hourglass"], reach.read(text)) == whole
    # It is enough that one occurrence is read, and a prompt without the name has nothing to lose.
    again = f"an Hourglass {text}"
    assert reads_a_name(again, ["hourglass"], reach.read(again))
    assert reads_a_name("very " * 50, ["hourglass"], reach.read("very " * 50))


@pytest.mark.parametrize(
    ("names", "head", "tail", "read"),
    [
        (["cat"], "", "delicate category", True),
        (["cat"], "a cat", "delicate category", True),
        (["cat"], "delicate", "a cat", False),
        (["hourglass"], "", "hourglasses", False),
        (["Cézanne"], "", "by CÉZANNE", False),
        (["O'Keeffe"], "", "O'Keeffe's desert", False),
        (["砂時計"], "", "赤い砂時計の絵", False),
        (["50 Cent"], "150 cents", "50 Cent", False),
    ],
)
def test_only_whole_words_name_a_concept(reach: TextReach, names: list[str], head: str, tail: str, read: bool) -> None:
    text = f"{head} {'very ' * 30}{tail}".strip()
    assert reads_a_name(text, names, reach.read(text)) == read


def test_a_name_of_several_tokens_is_not_read_in_part(reach: TextReach) -> None:
    text = "very " * 20 + "hour_glass"
    assert reach.read(text).tokens == 24
    assert not reads_a_name(text, ["hour_glass"], reach.read(text))


def test_prompts_that_put_the_name_beyond_reach_are_found(reach: TextReach) -> None:
    far = "very " * 100 + "{concept}"
    concept = entry(
        names=["hourglass", "hour_glass"],
        prompts=["a {concept}", far, "very " * 21 + "{concept}"],
        held_out_prompts=[far],
    )
    found = unread_names(concept, {"a": [reach]})
    assert [each.keys for each in found] == [("prompts", 1), ("prompts", 2), ("held_out_prompts", 0)]
    assert all("reads the first 22" in each.description for each in found)
    assert "has 104 tokens" in found[0].description
    longer = TextReach(reach.tokenizer, 75)
    assert list(unread_everywhere(concept, {"a": [reach], "b": [longer]})) == [("prompts", 1), ("held_out_prompts", 0)]
    assert not unread_everywhere(concept, {})


def test_the_default_prompts_count_too(reach: TextReach) -> None:
    concept = entry(names=["sand", "hour " * 30])
    assert [each.keys for each in unread_names(concept, {"a": [reach]})] == [("names", 1)]


def test_labels_that_a_judge_cuts_are_found() -> None:
    clip = judge_reach(EMBEDDED.parent / "clip")
    concept = entry(labels={"testbed/clip": ["a picture of a hourglass", "very " * 30], "testbed/judge": ["x " * 99]})
    ((keys, description),) = cut_labels(concept, {"testbed/clip": clip})
    assert keys == ("labels", "testbed/clip", 1)
    assert "has 30 tokens, and the judge reads 22" in description


def test_models_of_one_folder_share_their_reach() -> None:
    catalogue = Catalogue.load()
    assert text_reaches(catalogue, "testbed/uce") is text_reaches(catalogue, "testbed/reference")
    assert label_reach(catalogue, "testbed/judge") is None
    reach = label_reach(catalogue, "testbed/clip")
    assert reach is not None
    assert reach.limit == READ


def _folder(tmp_path: Path) -> Path:
    for part in ("tokenizer", "text_encoder"):
        (tmp_path / part).mkdir()
        for file in (REFERENCE / part).glob("*.json"):
            shutil.copy(file, tmp_path / part)
    return tmp_path


def test_two_encoders_read_as_much_as_the_longer(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    index = json.loads((REFERENCE / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXLPipeline"}))
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(folder / part, folder / f"{part}_2")
    config = folder / "text_encoder_2" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 12}))
    reaches = model_reaches(folder)
    assert [each.limit for each in reaches] == [READ, 10]
    assert furthest(reaches, "very " * 15).limit == READ


def test_a_folder_as_older_libraries_left_it(tmp_path: Path, reach: TextReach) -> None:
    """With vocab.json and merges.txt in place of tokenizer.json."""
    folder = _folder(tmp_path)
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (old,) = model_reaches(folder)
    text = "very " * 30 + "hour_glass Café"
    assert old.read(text) == reach.read(text)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "MODEL_INCOMPLETE"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), "TOKENIZER_UNREADABLE"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{"), "TOKENIZER_UNREADABLE"),
        (lambda folder: (folder / "text_encoder" / "config.json").write_text("["), "MODEL_INCOMPLETE"),
        (
            lambda folder: (folder / "text_encoder" / "config.json").write_text('{"max_position_embeddings": "many"}'),
            "MODEL_UNSUPPORTED",
        ),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, spoil: object, reason: str) -> None:
    folder = _folder(tmp_path)
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(UnsafeModelError) as refused:
        model_reaches(folder)
    assert refused.value.reason == reason


def test_many_threads_may_read_the_first_tokenizer_of_a_process_at_once() -> None:
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
from unerase_backend.catalogue import EMBEDDED, text_reach

together = threading.Barrier(8)

def read(_):
    together.wait()
    return text_reach.model_reaches.__wrapped__(EMBEDDED.parent / "reference")

with ThreadPoolExecutor(8) as threads:
    list(threads.map(read, range(8)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
