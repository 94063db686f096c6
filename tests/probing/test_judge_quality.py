"""Judge quality: which pictures the judges are shown, and how well the testbed's judges know them."""

import numpy as np

from support.backend import CONCEPT, LocalBackend
from support.recording import Recording


async def test_judges_are_shown_all_that_is_known(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("judge-quality", parameters={"other_pictures": 5})
    unit.model = ""
    seen = await recording.observe(unit)
    (request,) = recording.classified
    concept = unit.target.concept
    assert list(request.questions) == [unit.target.selector, unit.target.judge, unit.target.second_judge]
    assert list(request.picture_digests) == [observation.picture_digest for observation in seen]
    shown = {
        arm: [each.picture_digest for each in seen if each.arm == arm] for arm in ("concept", "other", "near-miss")
    }
    assert shown["concept"] == list(concept.picture_digests)
    assert shown["near-miss"] == list(concept.near_miss_digests)
    assert len(shown["other"]) == 9 * 5
    assert not set(shown["other"]) & set(concept.picture_digests)
    assert {observation.model for observation in seen} == {""}


async def test_the_judges_know_what_is_known(local: LocalBackend) -> None:
    seen = await local.observe(local.unit("judge-quality", parameters={"other_pictures": 8}))
    for position in (1, 2):
        rates = {
            arm: np.mean([each.judgements[position].detected for each in seen if each.arm == arm])
            for arm in ("concept", "other", "near-miss")
        }
        assert rates["concept"] >= 0.9
        assert rates["other"] <= 0.05
        assert rates["near-miss"] <= 0.1
    assert {each.concept for each in seen if each.arm != "other"} == {CONCEPT}
