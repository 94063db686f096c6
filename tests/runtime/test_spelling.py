"""Names in the forms that texts have of them."""

# ruff: noqa: RUF001 - names as people write them

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.entries import ConceptEntry
from unerase_backend.runtime.spelling import canonical, forms, plural, singular, words
from unerase_backend.verdict.roles import known_never_learned


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hour_glass", ["hour", "glass"]),
        ("Vincent van Gogh's", ["vincent", "van", "gogh", "s"]),
        ("L’Hourglass", ["l", "hourglass"]),
        ("Ｇｏｌｆ－Ｂａｌｌ ２", ["golf", "ball", "2"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("砂時計", ["砂時計"]),
        ("घड़ी", ["घड़ी"]),
        ("Cafe\u0301", ["café"]),
        ("__ - ’", []),
    ],
)
def test_words_are_runs_of_letters_and_digits(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("hourglass", "hourglasses"),
        ("box", "boxes"),
        ("church", "churches"),
        ("lady", "ladies"),
        ("toy", "toys"),
        ("ball", "balls"),
    ],
)
def test_plurals_and_singulars_are_each_others(one: str, several: str) -> None:
    assert (plural(one), singular(several), singular(one)) == (several, one, one)


@pytest.mark.parametrize("word", ["bus", "glass", "iris", "moss", "is"])
def test_a_word_that_only_ends_like_a_plural_stays(word: str) -> None:
    assert singular(word) == word


def test_forms_are_words_and_runs_of_them() -> None:
    assert {"vincent", "van", "gogh", "vangogh", "vincentvangogh", "vincentvan"} <= forms(["Vincent van Gogh"])
    assert "vincentgogh" not in forms(["Vincent van Gogh"])
    assert {"cafe", "café", "cafes", "cafés"} <= forms(["Café"])
    assert forms([]) == set()
    assert forms(["__"]) == set()


@given(names=st.lists(st.text(max_size=40), max_size=4))
def test_forms_are_whole_for_any_name(names: list[str]) -> None:
    found = forms(names)
    assert "" not in found
    for name in names:
        assert set(words(name)) <= found | {""}
        assert "".join(words(name)) in found | {""}


def test_what_is_one_word_to_people_is_the_same_concept() -> None:
    assert len({canonical(name) for name in ("golf_ball", "Golf Ball", "golf balls", "GOLF-BALL", "golfball")}) == 1
    assert canonical("!!") == "!!"
    catalogue = Catalogue.load()
    entry = catalogue.concepts["hourglass"].model_copy(update={"labels": {}})
    for name in ("hour_glass", "Hourglasses", "hour-glass"):
        other = ConceptEntry.model_validate({"kind": "object", "names": [name]})
        assert catalogue.same(entry, other)
    assert not catalogue.same(entry, ConceptEntry.model_validate({"kind": "object", "names": ["glass"]}))


def test_a_models_claims_are_found_however_they_are_spelled(tmp_path: Path) -> None:
    """The default control is a model that never learned the concept under any spelling of its names."""
    for name, control in (("Hour-Glasses", "testbed/never"), ("glass", None)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"concepts": {"mine": {"kind": "object", "names": [name]}}}))
        assert Catalogue.load([str(file)]).concepts["mine"].control == control
    assert known_never_learned(["Hour-Glasses"], "hourglass", [])
    assert known_never_learned(["hourglass"], "sd/timer", ["hour glass"])
    assert not known_never_learned(["glass"], "hourglass", ["sandglass"])
