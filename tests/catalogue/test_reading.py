"""Catalogue files that are no catalogue: each is refused in a line, soon."""

from pathlib import Path

import pytest

from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.reading import read_file
from unerase_backend.runtime.errors import InvalidRequestError


def refused(path: Path) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequestError) as caught:
        read_file(path)
    return [(violation.field, violation.description) for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: " + "[" * 5000, "nested too deeply"),
        ("models: &a {b: *a}", "leads back to itself"),
        (
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8)),
            "unfolded",
        ),
        (
            "a0: &a0 {k: 1}\n"
            + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 8)),
            "unfolded",
        ),
    ],
)
def test_a_file_that_unfolds_without_end_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "models.yaml").write_text(text)
    [(field, description)] = refused(tmp_path / "models.yaml")
    assert field == "models.yaml"
    assert words in description


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_bytes("models: {}".encode("utf-16"))
    assert refused(tmp_path / "models.yaml") == [("models.yaml", "is not text in UTF-8")]


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("model: {}", "model", "there is no such key; did you mean models?"),
        ("models: {a/b: {base: c/d, unett: x}}", "models.a/b.unett", "there is no such key; did you mean unet?"),
        ("judges: {a/b: {kind: clip, x: 3}}", "judges.a/b.x", "there is no such key; the keys here are kind, path, "),
        ("judges: {a/b: {}}", "judges.a/b.kind", "must be given"),
    ],
)
def test_a_key_that_is_spelled_wrong_is_answered_with_the_right_one(
    tmp_path: Path, text: str, key: str, says: str
) -> None:
    (tmp_path / "models.yaml").write_text(text)
    [(field, description)] = refused(tmp_path / "models.yaml")
    assert field == f"models.yaml: {key}"
    assert description.startswith(says)


@pytest.mark.parametrize("value", ["2026-13-45", "!!timestamp soon", "!!int ''", "!!bool perhaps"])
def test_a_value_that_yaml_cannot_read_names_the_file(tmp_path: Path, value: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"models: {value}\n")
    with pytest.raises(InvalidRequestError) as error:
        Catalogue.load([str(file)])
    (violation,) = error.value.violations
    assert violation.field == "own.yaml"
    assert "is not valid YAML" in violation.description
