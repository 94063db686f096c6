"""Custom concepts over a real socket, on the coordinator's own server: created, refused, repeated, listed, deleted."""

import asyncio
import io
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from unerase import AsyncClient
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.models_pb2 import CreateConceptRequest, ListConceptsRequest, NewConcept, PictureChunk
from unerase.v1.models_pb2_grpc import ModelServiceStub
from unerase.v1.types_pb2 import EvaluationDescription, JudgeLabels, PromptKind, PromptPack
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api import model_service
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture

from .conftest import INVALID, SIDE, Service, described, fields, picture, refused


async def test_a_concept_comes_back_with_its_pictures(client: AsyncClient, store: ArtifactStore) -> None:
    concept = described("mine/whole", control="small/never", initial_token="shape", placebo=False)
    pictures, near_misses = [picture(seed) for seed in range(5)], [picture(seed) for seed in (10, 11)]
    created = await client.create_concept(concept, pictures, near_misses)
    assert created.custom
    for field in ("name", "kind", "names", "prompts", "labels", "control", "initial_token"):
        assert getattr(created, field) == getattr(concept, field)
    for digests, sent in ((created.picture_digests, pictures), (created.near_miss_digests, near_misses)):
        assert len(digests) == len(sent)
        for digest, content in zip(digests, sent, strict=True):
            assert np.array_equal(decode_picture(store.get(digest)), decode_picture(content))
    assert await client.concept("mine/whole") == created
    listed = {each.name: each for each in await client.concepts()}
    assert listed["mine/whole"] == created
    assert list(listed) == sorted(listed)
    assert not listed["hourglass"].custom
    assert not (await client.concept("hourglass")).custom


async def test_the_kinds_own_prompts_stand_where_none_are_given(client: AsyncClient) -> None:
    created = await client.create_concept(described(prompts=[]))
    assert list(created.prompts) == ["a picture of a {concept}"]


async def test_a_sheet_is_cut_into_its_tiles(client: AsyncClient, store: ArtifactStore) -> None:
    tiles = [decode_picture(picture(seed)) for seed in range(6)]
    sheet = np.concatenate([np.concatenate(tiles[:3], axis=1), np.concatenate(tiles[3:], axis=1)])
    png = io.BytesIO()
    Image.fromarray(sheet).save(png, format="PNG")
    created = await client.create_concept(described(), [png.getvalue()], tile=SIDE)
    seen = [decode_picture(store.get(digest)) for digest in created.picture_digests]
    assert all(np.array_equal(one, other) for one, other in zip(seen, tiles, strict=True))


async def test_nothing_but_the_pixels_is_kept(client: AsyncClient, store: ArtifactStore) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("secret", "where the picture was taken")
    sent = picture(1, pnginfo=info)
    created = await client.create_concept(described(), [sent])
    kept = store.get(created.picture_digests[0])
    assert b"secret" in sent
    assert b"secret" not in kept
    assert np.array_equal(decode_picture(kept), decode_picture(sent))


async def test_a_picture_in_any_pieces_is_the_same_picture(service: Service, client: AsyncClient) -> None:
    """A picture larger than a piece, once as the client sends it and once byte by byte at its ends."""
    concept, content = described(), picture(3, 512)
    created = await client.create_concept(concept, [content], request_id="pieces")
    pieces = [content[:1], b"", content[1:-1], content[-1:]]
    messages = [CreateConceptRequest(concept=NewConcept(request_id="pieces", concept=concept))]
    messages += [
        CreateConceptRequest(picture=PictureChunk(chunk=piece, last=index == len(pieces) - 1))
        for index, piece in enumerate(pieces)
    ]
    async with grpc.aio.insecure_channel(service.address) as channel:
        assert await ModelServiceStub(channel).CreateConcept(iter(messages)) == created


async def test_a_repeated_request_is_the_same_concept_and_another_body_is_refused(client: AsyncClient) -> None:
    concept, pictures = described(), [picture(seed) for seed in range(3)]
    together = [client.create_concept(concept, pictures, request_id="again") for _ in range(3)]
    first, *others = await asyncio.gather(*together)
    assert others == [first, first]
    changed = [
        (described(concept.name, names=["hourglass"]), pictures, []),
        (concept, pictures[:2], []),
        (concept, pictures[::-1], []),
        (concept, pictures[:2], pictures[2:]),
    ]
    for body in changed:
        error = await refused(client.create_concept(*body, request_id="again"))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert error.metadata == {"concept": concept.name}
    error = await refused(client.create_concept(concept, pictures))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "CONCEPT_EXISTS")


async def test_deleted_and_created_again(client: AsyncClient) -> None:
    concept = described("mine/short-lived")
    await client.create_concept(concept, request_id="first")
    await client.delete_concept("mine/short-lived")
    error = await refused(client.concept("mine/short-lived"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CONCEPT_NOT_FOUND")
    assert (await refused(client.delete_concept("mine/short-lived"))).reason == "CONCEPT_NOT_FOUND"
    assert "mine/short-lived" not in [each.name for each in await client.concepts()]
    assert (await client.create_concept(concept, request_id="second")).name == "mine/short-lived"


@pytest.mark.parametrize("name", ["no such", "x" * 100_000, "a\0b", "'; drop table unerase_concepts; --"])
async def test_a_name_that_nothing_has(client: AsyncClient, name: str) -> None:
    for call in (client.concept(name), client.delete_concept(name)):
        error = await refused(call)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CONCEPT_NOT_FOUND")
        assert len(str(error)) < 2000


async def test_what_is_the_operators_is_not_deleted(client: AsyncClient) -> None:
    error = await refused(client.delete_concept("hourglass"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONCEPT_NOT_CUSTOM")
    for call in (client.delete_concept(""), client.concept("")):
        assert fields(await refused(call)) == {"name": "must name a concept"}


LABELS = [JudgeLabels(judge="first", labels=["hourglass"])]


@pytest.mark.parametrize(
    ("change", "field", "description"),
    [
        ({"name": "hourglass"}, "concept.name", "the catalogue has a concept 'hourglass'"),
        ({"name": "../etc"}, "concept.name", "must be a name of letters"),
        ({"name": "x" * 101}, "concept.name", "at most 100 characters"),
        ({"kind": 0}, "concept.kind", "'object', 'colour', 'style', 'person'"),
        ({"kind": 9}, "concept.kind", "'object', 'colour', 'style', 'person'"),
        ({"names": []}, "concept.names", "at least 1 item"),
        ({"names": ["hourglass", ""]}, "concept.names[1]", "at least 1 character"),
        ({"names": ["hourglass", " "]}, "concept.names", "' ' begins or ends with a space"),
        ({"names": ["egg timer "]}, "concept.names", "'egg timer ' begins or ends with a space"),
        ({"names": ["hourglass", "x" * 1001]}, "concept.names[1]", "at most 1000 characters"),
        ({"names": ["x" * 300_000]}, "concept", "must be at most 262144 bytes"),
        ({"prompts": ["an {hourglass}"]}, "concept.prompts[0]", 'holds "{concept}" once or, to stand as it is, never'),
        ({"held_out_prompts": ["{concept} {concept}"]}, "concept.held_out_prompts[0]", "once"),
        ({"labels": [*LABELS, JudgeLabels(judge="nobody", labels=["x"])]}, "concept.labels[1].judge", "no such judge"),
        ({"labels": [*LABELS, *LABELS]}, "concept.labels[1].judge", "'first' occurs twice"),
        ({"labels": [JudgeLabels(judge="first")]}, "concept.labels[0].labels", "at least 1 item"),
        ({"labels": [JudgeLabels(judge="a judge", labels=["x"])]}, "concept.labels[0].judge", "must be a name of"),
        (
            {"labels": [*LABELS, JudgeLabels(judge="second", labels=["hourglass", "no such"])]},
            "concept.labels[1].labels[1]",
            "the judge has no label 'no such'",
        ),
        ({"control": "nobody"}, "concept.control", "there is no such model"),
        ({"placebo": True}, "concept.placebo", "'small/edited' is said to have erased it"),
        ({"control": "small/reference"}, "concept.control", "names neither the concept nor one of its words"),
        ({"names": ["egg timer"], "control": "small/never"}, "concept.control", "neither the concept nor one of"),
        ({"custom": True}, "concept.custom", "is set by the backend"),
        (
            {"pack": PromptPack(kinds=[PromptKind(name="a b", prompts=["x"])])},
            "concept.pack.kinds[0].name",
            "lower-case",
        ),
        ({"picture_digests": ["0" * 64]}, "concept.picture_digests", "is set by the backend"),
        ({"near_miss_digests": ["0" * 64]}, "concept.near_miss_digests", "is set by the backend"),
    ],
)
async def test_a_bad_field_is_named(client: AsyncClient, change: dict, field: str, description: str) -> None:
    error = await refused(client.create_concept(described(**change), [picture(0)]))
    assert error.code == INVALID
    assert list(fields(error)) == [field]
    assert description in fields(error)[field]


@pytest.mark.parametrize("request_id", ["x" * 65, "a b", "é"])
async def test_a_bad_request_id(client: AsyncClient, request_id: str) -> None:
    assert list(fields(await refused(client.create_concept(described(), request_id=request_id)))) == ["request_id"]


async def test_there_is_a_most_of_concepts(
    client: AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_service, "MAX_CONCEPTS", len(await service.database.concepts.names()) + 1)
    await client.create_concept(described("mine/last"), request_id="last")
    error = await refused(client.create_concept(described()))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONCEPTS_FULL")
    # What is there already is no new one.
    assert (await client.create_concept(described("mine/last"), request_id="last")).name == "mine/last"


async def test_judges_are_asked_only_for_what_is_new(client: AsyncClient, service: Service) -> None:
    concept = described()
    before = service.judges.asked
    await client.create_concept(concept, request_id="asked")
    await client.create_concept(concept, request_id="asked")
    await client.create_concept(described(labels=[]))
    assert service.judges.asked == before + 1


async def test_pages_hold_both_kinds(service: Service, client: AsyncClient) -> None:
    for name in ("a-first", "zz-last"):
        await client.create_concept(described(name))
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub, token, seen = ModelServiceStub(channel), "", []
        while True:
            page = await stub.ListConcepts(ListConceptsRequest(page_size=2, page_token=token))
            seen += [concept.name for concept in page.concepts]
            token = page.next_page_token
            if not token:
                break
    assert seen == [concept.name for concept in await client.concepts()]
    assert (seen[0], seen[-1]) == ("a-first", "zz-last")


async def test_a_custom_concept_is_planned_as_any_other_and_nobodys_other(
    client: AsyncClient,
    service: Service,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: dict[str, EvaluationDescription],
) -> None:
    await client.create_concept(described("mine/planned", control="small/never"), [picture(seed) for seed in range(4)])
    custom = await service.database.concepts.named(["mine/planned", "hourglass", ""])
    extended = catalogue.extended(custom)

    def plan(concept: str, known: Catalogue):
        spec = AuditSpec(subject="small/edited", concept=concept)
        return make_plan(spec, known, store, descriptions, lambda: 5)

    planned = plan("mine/planned", extended)
    assert planned.concept.custom
    assert len(planned.concept.picture_digests) == 4
    assert planned.spec.control == "small/never"
    assert {case.prompt for case in planned.cases} == {"a hourglass", "a egg timer"}
    # It shares a word with the catalogue's hourglass, which is therefore no other thing.
    (kept,) = [unit for unit in planned.units if unit.id == "interference/subject/0"]
    unit = whole(kept, planned.parts)
    assert [other.concept.name for other in unit.others] == ["circle"]
    assert list(unit.target.selector.alternatives) == ["a circle"]
    # What the operator's concepts are audited with does not depend on it.
    assert plan("hourglass", extended) == plan("hourglass", catalogue)


async def test_pictures_of_another_size_than_the_models_are_refused_when_planned(
    client: AsyncClient,
    service: Service,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: dict[str, EvaluationDescription],
) -> None:
    await client.create_concept(described("mine/large"), [picture(0, 64)])
    extended = catalogue.extended(await service.database.concepts.named(["mine/large"]))
    with pytest.raises(InvalidRequestError) as caught:
        make_plan(AuditSpec(subject="small/edited", concept="mine/large"), extended, store, descriptions, lambda: 5)
    assert [(each.field, each.description) for each in caught.value.violations] == [
        ("spec.concept", "its pictures have 64 pixels a side, the reference's 32")
    ]


async def test_the_operators_concept_keeps_its_name(
    client: AsyncClient, service: Service, catalogue: Catalogue, tmp_path: Path
) -> None:
    """A catalogue that gains a custom concept's name later has it."""
    await client.create_concept(described("mine/overtaken"))
    custom = await service.database.concepts.named(["mine/overtaken"])
    file = tmp_path / "later.yaml"
    file.write_text("concepts: {mine/overtaken: {kind: style, names: [theirs]}}")
    later = Catalogue.load([str(file)], embedded=Path("none")).extended(custom)
    assert later.concept("mine/overtaken").names == ("theirs",)
    assert not later.custom


async def test_a_prompt_whose_name_no_model_reads_is_refused(client: AsyncClient) -> None:
    far = "a picture of " + "very " * 100 + "{concept}"
    error = await refused(client.create_concept(described(prompts=["a {concept}", far], held_out_prompts=[far])))
    assert error.code == INVALID
    assert list(fields(error)) == ["concept.prompts[1]", "concept.held_out_prompts[0]"]
    # "egg timer" is the longer of the names.
    assert "has 108 tokens" in fields(error)["concept.prompts[1]"]
    assert "reads the first 22, and those end before 'egg timer' does" in fields(error)["concept.prompts[1]"]
