"""The order in which replicas are asked: holders of the model first, until they are busier than the others."""

from hypothesis import given
from hypothesis import strategies as st

from unerase.internal.v1alpha1.generation_pb2 import (
    EncodeRequest,
    GenerateRequest,
    MeasureDenoisingRequest,
    ModelChange,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.generation.load import Load, work_of
from unerase_backend.generation.routing import Standing, model_key, ranked

models = st.sampled_from(["a", "b", "c"])
names = st.lists(st.text("0123456789abcdef", min_size=1, max_size=8), min_size=1, max_size=8, unique=True)


@st.composite
def crowds(draw: st.DrawFn) -> list[Standing]:
    return [Standing(name, draw(st.frozensets(models)), draw(st.integers(0, 200))) for name in draw(names)]


@given(crowds(), models)
def test_every_replica_is_asked_once_in_an_order_that_all_callers_share(crowd: list[Standing], model: str) -> None:
    order = ranked(crowd, model)
    assert sorted(order) == sorted(standing.replica for standing in crowd)
    assert ranked(list(reversed(crowd)), model) == order


@given(crowds(), models, st.integers(1, 64))
def test_a_free_holder_comes_first_and_a_busy_one_after_the_free(crowd: list[Standing], model: str, busy: int) -> None:
    first = next(standing for standing in crowd if standing.replica == ranked(crowd, model, busy)[0])
    free = [standing for standing in crowd if standing.trajectories < busy]
    if free:
        assert first.trajectories < busy
        assert (model in first.models) == any(model in standing.models for standing in free)
    else:
        assert first.trajectories // busy == min(standing.trajectories // busy for standing in crowd)


@given(names, st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True))
def test_a_replica_that_goes_moves_its_own_models_alone(replicas: list[str], wanted: list[str]) -> None:
    gone, *left = replicas
    for model in wanted if left else []:
        before = ranked([Standing(name, (), 0) for name in replicas], model)
        after = ranked([Standing(name, (), 0) for name in left], model)
        assert after == [name for name in before if name != gone]


def test_models_spread_over_replicas_that_hold_none() -> None:
    crowd = [Standing(f"replica-{index}", (), 0) for index in range(4)]
    firsts = [ranked(crowd, f"model-{index}")[0] for index in range(400)]
    assert min(firsts.count(standing.replica) for standing in crowd) > 60


def test_a_change_of_a_model_makes_it_another() -> None:
    one, other = ModelChange(unet_digest="a" * 64), ModelChange(unet_digest="b" * 64)
    keys = {
        model_key("m"),
        model_key("n"),
        model_key("m", [one]),
        model_key("m", [other]),
        model_key("m", [one, other]),
    }
    assert len(keys) == 5
    assert model_key("m", [one, other]) != model_key("m", [other, one])


def test_work_is_counted_in_trajectories() -> None:
    assert work_of(GenerateRequest(trajectories=[Trajectory()] * 7)) == 7
    assert work_of(MeasureDenoisingRequest(picture_digests=["x"] * 3, prompts=["", "a"])) == 6
    assert work_of(EncodeRequest(prompts=["a"])) == 0


def test_a_load_goes_down_with_each_answer_and_with_a_request_given_up() -> None:
    load = Load()
    with load.of(GenerateRequest(trajectories=[Trajectory()] * 3)) as share:
        assert load.trajectories == 3
        with load.of(GenerateRequest(trajectories=[Trajectory()] * 5)) as given_up:
            given_up.answered()
            assert load.trajectories == 7
        assert load.trajectories == 3
        share.answered()
        assert load.trajectories == 2
    assert load.trajectories == 0
