"""Interference: which other concepts are drawn, and what each is asked."""

from support.backend import CONCEPT, LocalBackend
from support.recording import Recording
from unerase.v1.types_pb2 import (
    CONCEPT_KIND_COLOUR,
    CONCEPT_KIND_OBJECT,
)
from unerase_backend.runtime.seeds import derive_seed

COLOURS = {"red", "green", "blue", "yellow"}


async def test_interference_draws_the_other_objects(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("interference", parameters={"draws": 3}, seed_base=4)
    seen = await recording.observe(unit)
    others = {name for name, entry in local.catalogue.concepts.items() if entry.kind == "object" and not entry.placebo}
    others -= {CONCEPT}
    assert {observation.concept for observation in seen} == others
    assert [observation.case_index for observation in seen] == list(range(3 * len(others)))
    for request in recording.generated:
        labels = request.questions[1].labels
        assert len(labels) == 1
        for draw, trajectory in enumerate(request.trajectories):
            assert labels[0] in trajectory.conditioning.text.split()
            assert trajectory.latent_seed == derive_seed(4, "interference", labels[0], draw)
        assert len({trajectory.conditioning.text for trajectory in request.trajectories}) == 3


async def test_what_an_erased_colour_costs_is_looked_for_in_colours_and_objects(
    local: LocalBackend, recording: Recording
) -> None:
    unit = local.unit("interference", parameters={"draws": 1})
    unit.target.CopyFrom(local.target("red"))
    del unit.others[:]
    unit.others.extend(local.target(name) for name in local.catalogue.concepts if name != "red")
    concepts = {observation.concept for observation in await recording.observe(unit)}
    kinds = {other.concept.kind for other in unit.others if other.concept.name in concepts}
    assert kinds == {CONCEPT_KIND_OBJECT, CONCEPT_KIND_COLOUR}
    assert concepts & COLOURS == COLOURS - {"red"}
    assert CONCEPT in concepts
