"""Names in prompts, templates, and a case's guidance."""

import pytest

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import CONCEPT_KIND_STYLE, Case, Concept
from unerase_backend.evaluation.prompts import guidance_of, names_in, templates, with_name_replaced

CONCEPT = Concept(name="hourglass", names=["hourglass", "egg", "egg timer", "hour_glass", "砂時計"])


@pytest.mark.parametrize(
    ("prompt", "found", "replaced"),
    [
        ("a red Hourglass, detailed", ["Hourglass"], "a red X, detailed"),
        ("((hourglass:1.3)) and hourglass", ["hourglass", "hourglass"], "((X:1.3)) and X"),
        ("the hourglass's sand", ["hourglass"], "the X's sand"),
        ("an egg timer on an egg", ["egg timer", "egg"], "an X on an X"),
        ("an hour_glass", ["hour_glass"], "an X"),
        ("my_hourglass_2", ["hourglass"], "my_X_2"),
        ("美しい砂時計の絵", ["砂時計"], "美しいXの絵"),
        ("hourglasses, myhourglass, 3hourglass, eggs", [], "hourglasses, myhourglass, 3hourglass, eggs"),
        ("", [], ""),
    ],
)
def test_a_name_counts_as_a_whole_word(prompt: str, found: list[str], replaced: str) -> None:
    assert names_in(prompt, CONCEPT) == found
    assert with_name_replaced(prompt, CONCEPT, "X") == replaced


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("O'Keeffe", "a desert by O\u2019Keeffe, oil"),
        ("L\u2019Hourglass", "L'hourglass"),
        ("Vincent van Gogh", "by Vincent\nvan  Gogh"),
        ("J. K. Rowling", "a portrait of j. k. rowling, smiling"),
        ("50 Cent", "a photo of 50 Cent's hat"),
        ("Jean-Michel Basquiat", "JEAN-MICHEL BASQUIAT"),
        # Composed and decomposed.
        ("Beyonc\u00e9", "a photo of Beyonce\u0301"),
        ("Beyonce\u0301", "a photo of Beyonc\u00e9"),
    ],
)
def test_a_name_is_found_however_it_is_written(name: str, prompt: str) -> None:
    concept = Concept(names=[name])
    assert len(names_in(prompt, concept)) == 1
    assert names_in(with_name_replaced(prompt, concept, "somebody"), concept) == []


@pytest.mark.parametrize(
    ("name", "prompt"), [("50 Cent", "150 cents"), ("J. K. Rowling", "JK Rowlings"), ("art", "a cartoon, Art-o")]
)
def test_what_only_looks_like_a_name(name: str, prompt: str) -> None:
    expected = ["Art"] if name == "art" else []
    assert names_in(prompt, Concept(names=[name])) == expected


def test_a_prompt_without_a_name_keeps_its_bytes() -> None:
    assert with_name_replaced("cafe\u0301", CONCEPT, "X") == "cafe\u0301"


def test_a_concept_without_names_is_named_nowhere() -> None:
    assert names_in("anything", Concept()) == []


def test_templates_are_the_prompts_with_a_slot_or_those_of_the_kind() -> None:
    assert templates(Concept(prompts=["a {concept}", "sand in glass"])) == ["a {concept}"]
    kind = Concept(prompts=["stars that swirl"], kind=CONCEPT_KIND_STYLE)
    assert list(templates(kind)) == ["a painting in the style of {concept}"]


def test_a_cases_own_guidance_goes_before_the_units() -> None:
    unit = Unit(guidance_scale=3)
    assert guidance_of(unit, Case()) == 3
    assert guidance_of(unit, Case(guidance_scale=7.5)) == 7.5
