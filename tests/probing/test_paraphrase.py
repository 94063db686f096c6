"""Paraphrase: the prompts of a pack, by kind, from each case's own latent."""

from itertools import product

from support.backend import NEVER, REFERENCE, LocalBackend
from support.recording import Recording
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    CONTROL_KIND_PLACEBO,
    SAMPLE_STATUS_NOT_APPLICABLE,
    PromptKind,
    PromptPack,
)
from unerase_backend.probing.probes.paraphrase import NO_PACK
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.testbed import tokenizer

SMALL = PromptPack(
    kinds=[
        PromptKind(name="synonym", prompts=["a sandglass", "a red sandglass", "a blue sandglass"]),
        PromptKind(name="typo", prompts=["a hourglas"]),
    ]
)


async def test_cases_go_through_the_prompts_of_each_kind(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("paraphrase", cases=3, parameters={"draws": 2})
    unit.target.concept.pack.CopyFrom(SMALL)
    unit.cases[1].guidance_scale = 7
    seen = await recording.observe(unit)
    (request,) = recording.generated
    drawn = {
        (each.case_index, each.arm, each.variant): (trajectory, each.prompt)
        for each, trajectory in zip(seen, request.trajectories, strict=True)
    }
    assert drawn.keys() == set(product(range(3), ("synonym", "typo"), range(2)))
    for (case, arm, variant), (trajectory, prompt) in drawn.items():
        prompts = SMALL.kinds[arm == "typo"].prompts
        assert trajectory.conditioning.text == prompt == prompts[(2 * case + variant) % len(prompts)]
        # The same prompt again is another picture.
        again = derive_seed(unit.seed_base, "paraphrase", case, 1)
        latent = again if (arm, variant) == ("typo", 1) else unit.cases[case].latent_seed
        assert trajectory.latent_seed == latent
        assert trajectory.guidance_scale == (7 if case == 1 else unit.guidance_scale)
        assert (trajectory.eta, trajectory.steps) == (0, unit.steps)


async def test_every_model_meets_the_same_draws(local: LocalBackend) -> None:
    one, other = Recording(), Recording()
    await one.observe(local.unit("paraphrase", REFERENCE))
    await other.observe(local.unit("paraphrase", NEVER))
    assert [request.trajectories for request in one.generated] == [request.trajectories for request in other.generated]


async def test_a_control_makes_as_many_draws_with_words_of_its_own(local: LocalBackend) -> None:
    own, words = Recording(), {}
    seen = await own.observe(local.unit("paraphrase"))
    for kind in (CONTROL_KIND_PLACEBO, CONTROL_KIND_CONCEPT_FREE):
        recording = Recording()
        control = await recording.observe(local.unit("paraphrase", control_kind=kind))
        assert [(each.case_index, each.arm, each.variant) for each in control] == [
            (each.case_index, each.arm, each.variant) for each in seen
        ]
        assert [trajectory.latent_seed for trajectory in recording.generated[0].trajectories[:2]] == [
            trajectory.latent_seed for trajectory in own.generated[0].trajectories[:2]
        ]
        words[kind] = {each.prompt for each in control}
        assert not any(name in prompt for prompt in words[kind] for name in ("hourglass", "sandglass"))
    assert all("fish" in prompt for prompt in words[CONTROL_KIND_PLACEBO])


async def test_a_concept_without_a_pack_is_not_applicable(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("paraphrase")
    unit.target.concept.ClearField("pack")
    seen = await recording.observe(unit)
    assert {(each.status, each.reason, each.case_index) for each in seen} == {
        (SAMPLE_STATUS_NOT_APPLICABLE, NO_PACK, 0),
        (SAMPLE_STATUS_NOT_APPLICABLE, NO_PACK, 1),
    }
    assert not recording.generated


def test_the_testbeds_packs_are_read_whole(local: LocalBackend) -> None:
    words = tokenizer.load(local.catalogue.model_parts(REFERENCE).folder / "tokenizer")
    packed = [name for name, entry in local.catalogue.concepts.items() if entry.pack is not None]
    assert set(packed) == {"hourglass", "heart", "arrow"}
    for name in packed:
        pack = local.target(name).concept.pack
        kinds = {kind.name for kind in pack.kinds}
        assert {"paraphrase", "synonym", "implicit", "typo"} < kinds
        assert len([kind for kind in kinds if kind.startswith("language-")]) == 5
        assert pack.source.name == f"{name}.yaml"
        for kind in pack.kinds:
            for prompt in kind.prompts:
                assert len(words(prompt, add_special_tokens=False).input_ids) <= tokenizer.LENGTH - 2, prompt
