"""Which evaluations apply to which families of models, and what is said where one does not."""

from dataclasses import replace

import pytest

from support.backend import own_evaluations
from unerase.v1.types_pb2 import (
    MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE,
    MODEL_CAPABILITY_GUIDANCE_SCALE,
    MODEL_CAPABILITY_LEARNED_TOKENS,
    MODEL_CAPABILITY_TOKEN_IDS,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    EvaluationDescription,
    ModelCapability,
    NotApplicable,
)
from unerase_backend.catalogue.model_families import FAMILIES, STABLE_DIFFUSION, ModelFamily
from unerase_backend.evaluation.applicability import applicability

FAMILY = {family.name: family for family in FAMILIES}
UNGUIDED = {"unconditional-rate", "diffusion-completion", "inpainting", "likelihood", "tracing"}
LEARNED = {"textual-inversion", "unlearn-diff-atk", "p4d"}
IDS = {"unlearn-diff-atk", "p4d", "ring-a-bell"}


def lacking(family: ModelFamily) -> dict[str, NotApplicable]:
    """Our own evaluations that do not apply to a family, by name."""
    found = {name: applicability(each.description, family) for name, each in own_evaluations().items()}
    return {name: why for name, why in found.items() if why is not None}


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "pixart", "sana"])
def test_every_evaluation_applies_where_guidance_is_classifier_free(name: str) -> None:
    assert lacking(FAMILY[name]) == {}


@pytest.mark.parametrize("name", ["flux-dev", "flux-schnell"])
def test_what_needs_a_prediction_without_guidance_does_not_apply_to_flux(name: str) -> None:
    found = lacking(FAMILY[name])
    assert found.keys() == UNGUIDED
    for why in found.values():
        assert (why.family, list(why.lacks)) == (name, [MODEL_CAPABILITY_UNGUIDED_ROW])


def test_the_reason_says_what_the_family_has_instead() -> None:
    assert {why.reason for why in lacking(FAMILY["flux-dev"]).values()} == {
        "predictions without guidance are needed, and FLUX.1 dev takes the guidance scale as an input, so that all "
        "that it predicts is guided"
    }
    assert {why.reason for why in lacking(FAMILY["flux-schnell"]).values()} == {
        "predictions without guidance are needed, and FLUX.1 schnell has its guidance in its weights, so that all that "
        "it predicts is guided"
    }


def test_what_learns_words_needs_a_text_encoder_that_takes_them() -> None:
    without = replace(STABLE_DIFFUSION, title="A family", learned_tokens=False)
    found = lacking(without)
    assert found.keys() == LEARNED
    assert found["textual-inversion"].reason == (
        "learned embeddings in the place of words are needed, and no text encoder of A family takes them"
    )
    assert lacking(replace(STABLE_DIFFUSION, token_ids=False)).keys() == IDS


def test_every_lack_is_named() -> None:
    bare = replace(STABLE_DIFFUSION, title="A family", learned_tokens=False, token_ids=False)
    why = lacking(bare)["p4d"]
    assert list(why.lacks) == [MODEL_CAPABILITY_TOKEN_IDS, MODEL_CAPABILITY_LEARNED_TOKENS]
    assert why.reason == (
        "prompts given as token ids are needed, and no text encoder of A family takes them; "
        "learned embeddings in the place of words are needed, and no text encoder of A family takes them"
    )


@pytest.mark.parametrize("family", FAMILIES, ids=list(FAMILY))
def test_an_evaluation_applies_exactly_where_nothing_that_it_needs_is_lacking(family: ModelFamily) -> None:
    for need in set(ModelCapability.values()) - {0}:
        why = applicability(EvaluationDescription(name="a", needs=[need, need]), family)
        assert (why is None) == (need in family.capabilities)
        if why is not None:
            assert list(why.lacks) == [need]
            assert family.title in why.reason
    assert applicability(EvaluationDescription(name="a"), family) is None


def test_a_scale_applies_to_a_family_that_takes_it_as_an_input() -> None:
    scaled = EvaluationDescription(name="a", needs=[MODEL_CAPABILITY_GUIDANCE_SCALE])
    weighed = EvaluationDescription(name="a", needs=[MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE])
    assert applicability(scaled, FAMILY["flux-dev"]) is None
    assert applicability(weighed, FAMILY["flux-dev"]) is not None
    assert applicability(scaled, FAMILY["flux-schnell"]) is not None


def test_a_need_that_a_later_version_knows_is_lacking() -> None:
    why = applicability(EvaluationDescription(name="a", needs=[4711]), STABLE_DIFFUSION)
    assert why == NotApplicable(
        reason="a capability is needed that only a later version knows (4711)", lacks=[4711], family="stable-diffusion"
    )
