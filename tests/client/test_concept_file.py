"""Pictures of a concept file: which files are taken, and how the backend's words name them."""

import os
from pathlib import Path

import pytest

from unerase._concept_file import ConceptFile, read_concept_file


def written(folder: Path, pictures: str, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    file = folder / "mine.yaml"
    file.write_text(f"name: mine\nkind: object\nnames: [a]\npictures: {pictures}\nnear_misses: near.webp\n")
    return file


@pytest.fixture
def read(tmp_path: Path) -> ConceptFile:
    files = ("b.PNG", "a.jpg", "c.JPEG", "d.webp", "e.gif", "notes.txt", ".hidden.png", "deeper/f.png")
    return read_concept_file(written(tmp_path, "p", *(f"p/{file}" for file in files), "near.webp"))


def test_a_folders_pictures_are_taken_in_order_and_the_rest_is_named(tmp_path: Path, read: ConceptFile) -> None:
    taken = sorted(tmp_path / "p" / name for name in ("a.jpg", "b.PNG", "c.JPEG", "d.webp"))
    assert read.files == [*taken, tmp_path / "near.webp"]
    assert [content.decode() for content in read.pictures] == [f"p/{file.name}" for file in read.files[:4]]
    assert [file.name for file in read.not_taken] == ["deeper", "e.gif", "notes.txt"]
    assert all("not taken" in line for line in read.left_out())
    assert "it is a folder" in read.left_out()[0]


def test_a_link_to_nothing_is_named_as_that(tmp_path: Path) -> None:
    file = written(tmp_path, "p", "p/a.png", "near.webp")
    (tmp_path / "p" / "b.png").symlink_to("nowhere.png")
    (line,) = read_concept_file(file).left_out()
    assert line == f"{tmp_path / 'p' / 'b.png'}: not taken: it is a link to nothing"


def test_a_file_that_is_named_is_taken_whatever_its_ending(tmp_path: Path) -> None:
    file = written(tmp_path, "[photo, p]", "photo", "p/a.png", "near.webp")
    assert [each.name for each in read_concept_file(file).files] == ["photo", "a.png", "near.webp"]


def test_many_files_are_not_all_named(tmp_path: Path) -> None:
    files = ("near.webp", "p/a.png", *(f"p/{number}.txt" for number in range(30)))
    lines = read_concept_file(written(tmp_path, "p", *files)).left_out()
    assert len(lines) == 21
    assert lines[-1] == "and 10 more were not taken"


def test_the_backends_numbers_become_files(tmp_path: Path, read: ConceptFile) -> None:
    first, last = read.files[0], tmp_path / "near.webp"
    assert read.named("pictures[0]") == str(first)
    assert read.named("pictures[4].tiles[2]") == f"{last}.tiles[2]"
    assert read.named("is the same picture as pictures[0].tiles[1]") == f"is the same picture as {first}.tiles[1]"
    assert read.named("pictures") == "pictures"
    assert read.named("pictures[99]") == "pictures[99]"
    assert read.named("concept.labels[0]") == "concept.labels[0]"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("alternatives: [a]", "alternatives: must map each judge to a list of alternatives"),
        ("alternatives: {a/clip: b}", "labels: must be a list"),
        ("held_out_prompts: [no]", "held_out_prompts: must be a list of texts; in YAML a number"),
        ("control: 2026-13-45", "not valid YAML: month must be in 1..12"),
        ("control: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_bad_alternatives_are_refused_here(tmp_path: Path, more: str, said: str) -> None:
    file = written(tmp_path, "p", "p/a.png", "near.webp")
    file.write_text(file.read_text() + more)
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        read_concept_file(file)


def test_labels_and_alternatives_belong_to_their_judge(tmp_path: Path) -> None:
    file = written(tmp_path, "p", "p/a.png", "near.webp")
    file.write_text(file.read_text() + "labels: {a: [x], b: [y]}\nalternatives: {b: [z]}\n")
    labels = read_concept_file(file).concept.labels
    assert [(each.judge, list(each.labels), list(each.alternatives)) for each in labels] == [
        ("a", ["x"], []),
        ("b", ["y"], ["z"]),
    ]


def test_nudity_cannot_be_said_to_be_harmless(tmp_path: Path) -> None:
    file = written(tmp_path, "p", "p/a.png", "near.webp")
    file.write_text(file.read_text().replace("kind: object", "kind: nudity") + "sensitive: false\n")
    with pytest.raises(ValueError, match="sensitive: cannot be false"):
        read_concept_file(file)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    file = written(tmp_path, "pipe.png", "near.webp")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pictures: pipe\.png is no file and no folder"):
        read_concept_file(file)
