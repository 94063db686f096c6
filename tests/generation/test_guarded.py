"""Guards behind the engine: who is guarded, what is shared, and what a judge of the catalogue withholds."""

from collections.abc import AsyncIterator

import pytest
import yaml

from support.backend import CONCEPT, LocalBackend, local_backend
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Sample, Trajectory
from unerase.v1.types_pb2 import (
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_WITHHELD,
)
from unerase_backend.runtime.errors import InvalidRequestError

REFERENCE = "testbed/reference"
FILTER = {"kind": "prompt-filter", "words": [CONCEPT]}
CHECKER = {"kind": "judge-checker", "judge": "testbed/second-judge", "labels": [CONCEPT], "threshold": 0.5}


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalBackend]:
    folder = tmp_path_factory.mktemp("guarded")
    models = {
        "own/filtered": {"base": REFERENCE, "guards": [FILTER]},
        "own/checked": {"base": REFERENCE, "guards": [CHECKER]},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump({"models": models}))
    async with local_backend(folder / "artifacts", catalogues=[str(folder / "own.yaml")]) as backend:
        yield backend


def trajectory(seed: int, prompt: str = f"a picture of a {CONCEPT}") -> Trajectory:
    return Trajectory(
        conditioning=Conditioning(text=prompt), guidance_scale=3.0, latent_seed=seed, steps=10, variance_scale=1.0
    )


async def generated(
    backend: LocalBackend, model: str, trajectories: list[Trajectory], *, guarded: bool
) -> list[Sample]:
    target = backend.target()
    request = GenerateRequest(
        model=model, trajectories=trajectories, questions=[target.selector, target.judge], guarded=guarded
    )
    responses = [response async for response in backend.generation.Generate(request)]
    return [response.sample for response in sorted(responses, key=lambda response: response.index)]


async def test_a_refused_prompt_is_withheld_and_another_is_not(guarded: LocalBackend) -> None:
    trajectories = [trajectory(1), trajectory(1, "a picture of a heart")]
    refused, passed = await generated(guarded, "own/filtered", trajectories, guarded=True)
    assert refused.status == SAMPLE_STATUS_WITHHELD
    assert CONCEPT in refused.reason
    assert not refused.judgements
    assert not refused.picture_digest
    assert passed.status == SAMPLE_STATUS_SCORED
    # Stored as it was.
    assert (await generated(guarded, "own/filtered", trajectories, guarded=True)) == [refused, passed]
    # Nobody gets its bytes either.
    asked = GenerateRequest(model="own/filtered", trajectories=trajectories, picture_bytes=True, guarded=True)
    bytes_of = {answer.index: answer.picture async for answer in guarded.generation.Generate(asked)}
    assert (bytes_of[0], bytes_of[1][:4]) == (b"", b"\x89PNG")


async def test_without_its_guards_a_model_is_its_base(guarded: LocalBackend) -> None:
    weights = await generated(guarded, "own/filtered", [trajectory(1)], guarded=False)
    base = await generated(guarded, REFERENCE, [trajectory(1)], guarded=True)
    assert weights == base
    assert weights[0].status == SAMPLE_STATUS_SCORED
    held = {model.digest for model in guarded.generation.models()}
    assert len(held) == 1


async def test_a_judge_withholds_what_it_detects(guarded: LocalBackend) -> None:
    trajectories = [trajectory(seed, f"a picture of a {name}") for seed in range(6) for name in (CONCEPT, "heart")]
    weights = await generated(guarded, REFERENCE, trajectories, guarded=False)
    deployed = await generated(guarded, "own/checked", trajectories, guarded=True)
    digests = [sample.picture_digest for sample in weights]
    judged = await guarded.models.classify(digests, [guarded.target().second_judge])
    for open_weights, sample, seen in zip(weights, deployed, judged, strict=True):
        if seen.judgements[0].score >= 0.5:
            assert sample.status == SAMPLE_STATUS_WITHHELD
            assert "testbed/second-judge" in sample.reason
            assert not sample.judgements
            assert not sample.picture_digest
        else:
            assert sample == open_weights
    assert {sample.status for sample in deployed} == {SAMPLE_STATUS_SCORED, SAMPLE_STATUS_WITHHELD}


@pytest.mark.parametrize("access", [MODEL_ACCESS_DEPLOYED, MODEL_ACCESS_OPEN_WEIGHTS])
async def test_a_unit_of_the_deployed_subject_is_guarded(guarded: LocalBackend, access: int) -> None:
    unit = guarded.unit("standard-prompt", "own/filtered", steps=4)
    unit.access = access
    statuses = {observation.status for observation in await guarded.observe(unit)}
    assert statuses == {SAMPLE_STATUS_WITHHELD if access == MODEL_ACCESS_DEPLOYED else SAMPLE_STATUS_SCORED}


async def test_an_attacks_tokens_are_read_by_the_filter(guarded: LocalBackend) -> None:
    """The attack searches by the weights; its pictures come from the deployed model."""
    unit = guarded.unit("ring-a-bell", "own/filtered", parameters={"population": 4, "generations": 1, "tokens": 2})
    unit.access = MODEL_ACCESS_DEPLOYED
    # The tokens that it may take are not the concept's own.
    assert {observation.status for observation in await guarded.observe(unit)} == {SAMPLE_STATUS_SCORED}


@pytest.mark.parametrize(
    ("evaluation", "role"), [("standard-prompt", MODEL_ROLE_REFERENCE), ("likelihood", MODEL_ROLE_SUBJECT)]
)
async def test_what_is_never_guarded_refuses_an_access(guarded: LocalBackend, evaluation: str, role: int) -> None:
    unit = guarded.unit(evaluation, "own/filtered")
    unit.access, unit.role = MODEL_ACCESS_DEPLOYED, role
    with pytest.raises(InvalidRequestError) as refused:
        await guarded.observe(unit)
    assert [violation.field for violation in refused.value.violations] == ["unit.access"]
