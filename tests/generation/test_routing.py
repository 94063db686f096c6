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
from unerase_backend.generation.routing import ReplicaStatus, ranked, routing_key

models = st.sampled_from(["a", "b", "c"])
names = st.lists(st.text("0123456789abcdef", min_size=1, max_size=8), min_size=1, max_size=8, unique=True)


@st.composite
def crowds(draw: st.DrawFn) -> list[ReplicaStatus]:
    return [ReplicaStatus(name, draw(st.frozensets(models)), draw(st.integers(0, 200))) for name in draw(names)]


@given(crowds(), models)
def test_every_replica_is_asked_once_in_an_order_that_all_callers_share(crowd: list[ReplicaStatus], model: str) -> None:
    order = ranked(crowd, model)
    assert sorted(order) == sorted(status.replica for status in crowd)
    assert ranked(list(reversed(crowd)), model) == order


@given(crowds(), models, st.integers(1, 64))
def test_a_free_holder_comes_first_and_a_busy_one_after_the_free(
    crowd: list[ReplicaStatus], model: str, busy: int
) -> None:
    first = next(status for status in crowd if status.replica == ranked(crowd, model, busy)[0])
    free = [status for status in crowd if status.trajectories < busy]
    if free:
        assert first.trajectories < busy
        assert (model in first.models) == any(model in status.models for status in free)
    else:
        assert first.trajectories // busy == min(status.trajectories // busy for status in crowd)


@given(names, st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True))
def test_a_replica_that_goes_moves_its_own_models_alone(replicas: list[str], wanted: list[str]) -> None:
    gone, *left = replicas
    for model in wanted if left else []:
        before = ranked([ReplicaStatus(name, (), 0) for name in replicas], model)
        after = ranked([ReplicaStatus(name, (), 0) for name in left], model)
        assert after == [name for name in before if name != gone]


def test_models_spread_over_replicas_that_hold_none() -> None:
    crowd = [ReplicaStatus(f"replica-{index}", (), 0) for index in range(4)]
    firsts = [ranked(crowd, f"model-{index}")[0] for index in range(400)]
    assert min(firsts.count(status.replica) for status in crowd) > 60


@given(names, st.data())
def test_a_model_that_none_holds_goes_to_the_least_loaded(replicas: list[str], data: st.DataObject) -> None:
    loads = data.draw(st.lists(st.integers(0, 31), min_size=len(replicas), max_size=len(replicas)))
    crowd = [ReplicaStatus(name, ("other",), load) for name, load in zip(replicas, loads, strict=True)]
    assert dict(zip(replicas, loads, strict=True))[ranked(crowd, "model", 32)[0]] == min(loads)


def test_the_models_of_an_audit_do_not_meet_on_one_replica_beside_an_idle_one() -> None:
    """Twelve trajectories each of subject, reference and control, asked for one after the other, on two replicas."""
    sent: dict[str, list[str]] = {"a": [], "b": []}
    for model in ("subject", "reference", "control"):
        crowd = [ReplicaStatus(name, models, 12 * len(models)) for name, models in sent.items()]
        sent[ranked(crowd, model)[0]].append(model)
    assert sorted(map(len, sent.values())) == [1, 2]


def test_a_change_of_a_model_makes_it_another() -> None:
    one, other = ModelChange(unet_digest="a" * 64), ModelChange(unet_digest="b" * 64)
    keys = {
        routing_key("m"),
        routing_key("n"),
        routing_key("m", [one]),
        routing_key("m", [other]),
        routing_key("m", [one, other]),
    }
    assert len(keys) == 5
    assert routing_key("m", [one, other]) != routing_key("m", [other, one])


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
