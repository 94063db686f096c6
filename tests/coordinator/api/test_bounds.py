"""What a request may hold: every repeated field and map of every method has a bound, which is checked first."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct, Value
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given

from support.fuzzing import FUZZ, hostile
from unerase.internal.v1alpha1.generation_pb2 import EncodeRequest, GenerateRequest
from unerase.internal.v1alpha1.probing_pb2 import ProbeRequest
from unerase.v1 import bounds_pb2
from unerase.v1.audits_pb2 import CreateAuditRequest
from unerase.v1.models_pb2 import CreateConceptRequest
from unerase_backend.coordinator.api.server import SERVICES
from unerase_backend.runtime.bounds import MAX_MESSAGES, check_bounds
from unerase_backend.runtime.errors import InvalidRequestError

_ALL = (
    *SERVICES,
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
REQUESTS = {method.input_type.full_name: method.input_type for service in _ALL for method in service.methods}
STRUCT = "google.protobuf.Struct"


def held(descriptor: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yield the way to each field below a message that can hold many items, a Struct being one."""
    for field in descriptor.fields:
        way = (*path, field)
        if field.message_type is not None and field.message_type.full_name == STRUCT:
            yield way
            continue
        if field.is_repeated:
            yield way
        if field.message_type is not None:
            assert field.message_type not in [each.containing_type for each in way], "a message within itself"
            yield from held(field.message_type, way)


WAYS = [(name, way) for name, descriptor in REQUESTS.items() for way in held(descriptor)]
NAMES = [f"{name.rpartition('.')[2]}.{'.'.join(field.name for field in way)}" for name, way in WAYS]


def bound(field: FieldDescriptor) -> int:
    return field.GetOptions().Extensions[bounds_pb2.max_items]


def filled(name: str, way: tuple[FieldDescriptor, ...], count: int) -> Message:
    """Return a request that holds so many items at the end of a way."""
    request = message = GetMessageClass(REQUESTS[name])()
    for field in way[:-1]:
        inner: Any = getattr(message, field.name)
        message = inner.add() if field.is_repeated else inner
    *_, last = way
    items = getattr(message, last.name)
    if last.message_type is not None and last.message_type.full_name == STRUCT:
        for index in range(count):
            items.fields[str(index)].number_value = 1
    elif last.message_type is not None and last.message_type.GetOptions().map_entry:
        for index in range(count):
            items[str(index)] = ""
    elif last.message_type is not None:
        for _ in range(count):
            items.add()
    else:
        empty = {FieldDescriptor.TYPE_STRING: "", FieldDescriptor.TYPE_BYTES: b""}
        items.extend([empty.get(last.type, 1)] * count)
    return request


@pytest.mark.parametrize(("name", "way"), WAYS, ids=NAMES)
def test_whatever_can_hold_many_has_a_bound_that_is_kept(name: str, way: tuple[FieldDescriptor, ...]) -> None:
    most = bound(way[-1])
    assert most, f"{way[-1].full_name} has no max_items in its contract"
    check_bounds(filled(name, way, most))
    with pytest.raises(InvalidRequestError) as refused:
        check_bounds(filled(name, way, most + 1))
    (violation,) = refused.value.violations
    assert violation.field == ".".join(f"{each.name}[0]" if each.is_repeated else each.name for each in way[:-1]) + (
        f".{way[-1].name}" if len(way) > 1 else way[-1].name
    )
    assert violation.description == f"must be at most {most}, not {most + 1}"


def test_what_is_within_parameters_is_bounded_too() -> None:
    def refused(struct: Struct) -> str:
        request = CreateAuditRequest()
        request.spec.battery.evaluations.add().parameters.CopyFrom(struct)
        with pytest.raises(InvalidRequestError) as caught:
            check_bounds(request)
        return caught.value.message

    place = "spec.battery.evaluations[0].parameters"
    long_list, long_map, deep = Struct(), Struct(), Struct()
    long_list["list"] = [0.0] * 65
    assert refused(long_list) == f"{place}.list: must be at most 64, not 65"
    long_map["map"] = {str(index): 0.0 for index in range(65)}
    assert refused(long_map) == f"{place}.map: must be at most 64, not 65"
    deep["list"] = [[0.0], [0.0] * 65]
    assert refused(deep) == f"{place}.list.1: must be at most 64, not 65"


def test_messages_are_counted_in_all() -> None:
    """Each field within its bound, and far more than a request needs in all."""
    request = ProbeRequest()
    for _ in range(1000):
        concept = request.unit.others.add().concept
        for _ in range(64):
            concept.labels.add()
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_MESSAGES} messages"):
        check_bounds(request)
    struct = Struct()
    row = Value()
    row.list_value.values.extend([Value(list_value={"values": []})] * 64)
    square = Value()
    square.list_value.values.extend([row] * 64)
    for index in range(64):
        struct.fields[str(index)].CopyFrom(square)
    deep = CreateAuditRequest()
    deep.spec.battery.evaluations.add().parameters.CopyFrom(struct)
    with pytest.raises(InvalidRequestError, match="messages"):
        check_bounds(deep)


def test_the_largest_request_that_there_is_passes() -> None:
    request = GenerateRequest(model="m")
    for _ in range(4096):
        trajectory = request.trajectories.add()
        trajectory.conditioning.learned.embedding.shape.extend([1, 64])
        trajectory.resumption.latents.shape.extend([4, 8, 8])
        trajectory.classifier_guidance.scale = 1.0
        trajectory.inpainting.mask_share = 0.5
    check_bounds(request)


def _length_delimited(tag: int, content: bytes) -> bytes:
    def number(value: int) -> bytes:
        parts = []
        while value > 127:
            parts.append(value & 127 | 128)
            value >>= 7
        return bytes([*parts, value])

    return number(tag << 3 | 2) + number(len(content)) + content


@pytest.mark.parametrize(
    ("message", "content", "field"),
    [
        # What is repeated takes two bytes: millions of it fit into a request.
        (CreateConceptRequest, [1, 2, 6], "concept.concept.labels"),
        (ProbeRequest, [1, 7], "unit.others"),
        (GenerateRequest, [2], "trajectories"),
        (EncodeRequest, [2], "prompts"),
    ],
)
@pytest.mark.timeout(20)
def test_millions_are_refused_by_their_count(message: type[Message], content: list[int], field: str) -> None:
    *outer, last = content
    packed = _length_delimited(last, b"") * 2_000_000
    for tag in reversed(outer):
        packed = _length_delimited(tag, packed)
    with pytest.raises(InvalidRequestError) as refused:
        check_bounds(message.FromString(packed))
    assert [each.field for each in refused.value.violations] == [field]


@pytest.mark.parametrize("name", REQUESTS)
def test_whatever_comes_is_within_bounds_or_refused(name: str) -> None:
    kind = GetMessageClass(REQUESTS[name])

    @FUZZ
    @given(content=hostile(kind()))
    def checked(content: bytes) -> None:
        try:
            check_bounds(kind.FromString(content))
        except (DecodeError, InvalidRequestError):
            return

    checked()


def test_no_constant_says_otherwise() -> None:
    """The rules that the rooms check by are read from the same place."""
    from unerase_backend.catalogue import entries
    from unerase_backend.coordinator.planning import request
    from unerase_backend.evaluation import parameters, questions, units
    from unerase_backend.generation import validation

    found = {name: bound(way[-1]) for name, (_, way) in zip(NAMES, WAYS, strict=True) if bound(way[-1])}
    assert found["GenerateRequest.trajectories"] == validation.MAX_TRAJECTORIES
    assert found["EncodeRequest.prompts"] == validation.MAX_PROMPTS == found["MeasureDenoisingRequest.prompts"]
    assert found["GenerateRequest.changes"] == validation.MAX_CHANGES == found["MeasureDenoisingRequest.changes"]
    assert found["ClassifyRequest.questions"] == questions.MAX_QUESTIONS == found["GenerateRequest.questions"]
    labels = {found[name] for name in found if name.endswith(("questions.labels", "questions.alternatives"))}
    assert labels == {questions.MAX_TEXTS}
    assert found["ProbeRequest.unit.cases"] == units.MAX_CASES == found["AttackRequest.unit.cases"]
    assert found["CreateAuditRequest.spec.battery.evaluations"] == request.MAX_EVALUATIONS
    assert found["CreateAuditRequest.spec.battery.evaluations.parameters"] == parameters.MAX_LIST_LENGTH
    assert found["CreateConceptRequest.concept.concept.names"] == entries.MAX_CONCEPT_NAMES
