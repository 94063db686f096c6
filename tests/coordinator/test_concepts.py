"""Custom concepts over a real socket, on the coordinator's own server: created, refused, repeated, listed, deleted."""

import asyncio
import io
import struct
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from unerase import AsyncClient, ClientSettings, RetryConfig, UneraseError
from unerase._client import upload_of
from unerase._errors import error_of
from unerase.internal.v1alpha1.classification_pb2 import PictureJudgements
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.models_pb2 import CreateConceptRequest, ListConceptsRequest, NewConcept, PictureChunk
from unerase.v1.models_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Concept, EvaluationDescription, JudgeLabels
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator import concepts as limits
from unerase_backend.coordinator import models as servicing
from unerase_backend.coordinator import uploads
from unerase_backend.coordinator.database import Database
from unerase_backend.coordinator.interception import Interceptor
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.models import ModelServicer
from unerase_backend.coordinator.parts import whole
from unerase_backend.coordinator.plan import make_plan
from unerase_backend.coordinator.tables import create_engine
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture

SIDE = 32
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def picture(seed: int, side: int = SIDE, mode: str = "RGB", **options: object) -> bytes:
    """PNG of noise: no two seeds give the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(png, format="PNG", **options)
    return png.getvalue()


def described(name: str = "", **fields: object) -> Concept:
    labels = [JudgeLabels(judge=judge, labels=["hourglass"]) for judge in ("clip", "first", "second")]
    return Concept(
        **{
            "name": name or f"mine/{uuid.uuid4().hex[:8]}",
            "kind": CONCEPT_KIND_OBJECT,
            "names": ["hourglass", "egg timer"],
            "prompts": ["a {concept}"],
            "labels": labels,
            **fields,
        }
    )


@dataclass
class Judges:
    """Judges that know one label each, and count how often they are asked."""

    asked: int = 0

    async def classify(self, pictures: np.ndarray, questions: Sequence[Question]) -> list[PictureJudgements]:
        self.asked += 1
        unknown = [
            FieldViolation(f"questions[{index}].labels[{place}]", f"the judge has no label {label!r}")
            for index, question in enumerate(questions)
            for place, label in enumerate(question.labels)
            if label == "no such"
        ]
        # As real ones do: a CLIP judge weighs its labels against others, a classifier has its own.
        unknown += [
            FieldViolation(f"questions[{index}].alternatives", "are a CLIP judge's, and needed there")
            for index, question in enumerate(questions)
            if (question.judge == "clip") != bool(question.alternatives)
        ]
        if unknown:
            raise InvalidRequestError.of(*unknown)
        return [PictureJudgements()] * len(pictures)


@dataclass
class Service:
    """The server with what is behind it."""

    address: str
    database: Database
    judges: Judges


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue, store: ArtifactStore
) -> AsyncIterator[Service]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('concepts') / 'audits.sqlite'}"))
    await database.migrate()
    judges = Judges()
    server = grpc.aio.server(interceptors=[Interceptor(Metrics(), Gate(None))])
    add_ModelServiceServicer_to_server(ModelServicer(catalogue, store, database, judges.classify), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Service(f"127.0.0.1:{port}", database, judges)
    await server.stop(None)
    await database.close()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncClient]:
    # Refusals are looked at, and not waited out.
    async with AsyncClient(service.address, settings=ClientSettings(retry=RetryConfig(max_attempts=1))) as client:
        yield client


async def refused(call: object) -> UneraseError:
    with pytest.raises(UneraseError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def fields(error: UneraseError) -> dict[str, str]:
    return {violation.field: violation.description for violation in error.violations}


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
        ({"name": "../etc"}, "concept.name", "should match pattern"),
        ({"name": "x" * 101}, "concept.name", "at most 100 characters"),
        ({"kind": 0}, "concept.kind", "'object', 'colour' or 'style'"),
        ({"kind": 9}, "concept.kind", "'object', 'colour' or 'style'"),
        ({"names": []}, "concept.names", "at least 1 item"),
        ({"names": ["hourglass", ""]}, "concept.names[1]", "at least 1 character"),
        ({"names": ["hourglass", "x" * 1001]}, "concept.names[1]", "at most 1000 characters"),
        ({"names": ["x" * 300_000]}, "concept", "must be at most 262144 bytes"),
        ({"prompts": ["an hourglass"]}, "concept.prompts[0]", 'must hold "{concept}" once'),
        ({"held_out_prompts": ["{concept} {concept}"]}, "concept.held_out_prompts[0]", "once"),
        ({"labels": [*LABELS, JudgeLabels(judge="nobody", labels=["x"])]}, "concept.labels[1].judge", "no such judge"),
        ({"labels": [*LABELS, *LABELS]}, "concept.labels[1].judge", "'first' is there twice"),
        ({"labels": [JudgeLabels(judge="first")]}, "concept.labels[0].labels", "at least 1 item"),
        ({"labels": [JudgeLabels(judge="a judge", labels=["x"])]}, "concept.labels[0].judge", "match pattern"),
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


def bomb(side: int) -> bytes:
    """A PNG whose header promises `side` pixels a side, with next to nothing behind it."""

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def unfolding(head: bytes, kind: bytes) -> bytes:
    """A picture like any other, with 64 MB behind its header: a profile, a text."""
    whole = picture(0)
    first = 8 + 12 + 13
    return whole[:first] + chunk(kind, head + zlib.compress(bytes(64 * 2**20), 9)) + whole[first:]


def crowded(count: int) -> bytes:
    whole = picture(0)
    return whole[:33] + chunk(b"abCd", b"") * count + whole[33:]


def animated() -> bytes:
    content = io.BytesIO()
    frames = [Image.open(io.BytesIO(picture(seed))) for seed in (0, 1, 2)]
    frames[0].save(content, format="PNG", save_all=True, append_images=frames[1:])
    return content.getvalue()


def encoded(form: str) -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(picture(0))).save(content, format=form)
    return content.getvalue()


def narrow(**size: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size["width"], size["height"])).save(content, format="PNG")
    return content.getvalue()


def deep() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(content, format="PNG")
    return content.getvalue()


def transparent_palette() -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(picture(0))).convert("P").save(content, format="PNG", transparency=0)
    return content.getvalue()


@pytest.mark.parametrize(
    ("bad", "description"),
    [
        (b"", "damaged or no PNG"),
        (b"\x89PNG\r\n\x1a\n", "damaged or no PNG"),
        (picture(0)[:-200], "damaged or no PNG"),
        (encoded("JPEG"), "damaged or no PNG"),
        (encoded("TIFF"), "damaged or no PNG"),
        (encoded("GIF"), "damaged or no PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "damaged or no PNG"),
        (bomb(1_000_000), "far too many pixels"),
        (bomb(5000), "5000 x 5000 pixels, too many"),
        (bomb(4000), "must have 8 to 2048 pixels a side, not 4000"),
        (bomb(SIDE), "damaged or no PNG"),
        (unfolding(b"name\0\0", b"iCCP"), "damaged or no PNG"),
        (unfolding(b"name\0\0", b"zTXt"), "damaged or no PNG"),
        (unfolding(b"name\0\1\0\0\0", b"iTXt"), "damaged or no PNG"),
        (crowded(4096), "more than 4096 chunks"),
        (animated(), "not an animation"),
        (chunk(b"IHDR", b"")[:4] * 1000, "damaged or no PNG"),
        (narrow(width=32, height=33), "must be square, not 32 x 33 pixels"),
        (narrow(width=4, height=4), "must have 8 to 2048 pixels a side, not 4"),
        (picture(0, 64), "must have 32 pixels a side, as those before it, not 64"),
        (picture(0, mode="RGBA"), "must be opaque"),
        (picture(0, mode="LA"), "must be opaque"),
        (transparent_palette(), "must be opaque"),
        (deep(), "must be opaque, with 8 bits"),
        (picture(8), "is the same picture as pictures[0]"),
    ],
)
async def test_a_bad_picture_is_named(
    client: AsyncClient, service: Service, store: ArtifactStore, bad: bytes, description: str
) -> None:
    concept = described()
    error = await refused(client.create_concept(concept, [picture(8)], [picture(9), bad]))
    assert error.code == INVALID
    assert list(fields(error)) == ["pictures[2]"]
    assert description in fields(error)["pictures[2]"]
    assert await service.database.custom.named([concept.name]) == []


async def test_every_bad_picture_is_named_at_once(client: AsyncClient) -> None:
    error = await refused(client.create_concept(described(), [b"a", picture(1), b"b"]))
    assert list(fields(error)) == ["pictures[0]", "pictures[2]"]


@pytest.mark.parametrize(
    ("tile", "field", "description"),
    [
        (24, "pictures[0]", "has no tiles of 24"),
        (4, "pictures[0]", "must have 8 to 2048 pixels a side, not 4"),
        (2**32 - 1, "pictures[0]", "must have 8 to 2048"),
        (16, "pictures[0].tiles[1]", "is the same picture as pictures[0].tiles[0]"),
    ],
)
async def test_a_bad_sheet_is_named(client: AsyncClient, tile: int, field: str, description: str) -> None:
    error = await refused(client.create_concept(described(), [narrow(width=64, height=32)], tile=tile))
    assert description in fields(error)[field]


@pytest.fixture
def send(service: Service) -> Callable[..., object]:
    """Sends messages as they are, and returns the error."""

    async def raw(*messages: CreateConceptRequest | bytes) -> UneraseError:
        async with grpc.aio.insecure_channel(service.address) as channel:
            method = channel.stream_unary("/unerase.v1.ModelService/CreateConcept")
            content = [each if isinstance(each, bytes) else each.SerializeToString() for each in messages]
            with pytest.raises(grpc.RpcError) as caught:
                await method(iter(content), timeout=30)
            return error_of(caught.value)

    return raw


def begin(concept: Concept | None = None) -> CreateConceptRequest:
    return CreateConceptRequest(concept=NewConcept(request_id=uuid.uuid4().hex, concept=concept or described()))


def piece(content: bytes, **fields: object) -> CreateConceptRequest:
    return CreateConceptRequest(picture=PictureChunk(chunk=content, **fields))


async def test_messages_out_of_order(send: Callable[..., object]) -> None:
    whole = piece(picture(0), last=True)
    for messages, field in (
        ([], "concept"),
        ([b""], "concept"),
        ([whole, begin()], "concept"),
        ([begin(), whole, begin()], "pictures[1]"),
        ([begin(), whole, b""], "pictures[1]"),
        ([begin(), whole, piece(picture(1))], "pictures[1]"),
    ):
        error = await send(*messages)
        assert error.code == INVALID
        assert list(fields(error)) == [field]
    error = await send(begin(), b"\xff\xff\xff")
    assert (error.code, error.message) == (INVALID, "the request is not a message of this method")


async def test_too_much_is_refused_while_it_comes(send: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    megabyte = b"\0" * 2**20
    error = await send(begin(), *[piece(megabyte)] * 9)
    assert fields(error) == {"pictures[0]": "must be at most 8388608 bytes"}
    error = await send(begin(), *[piece(megabyte, last=True)] * 65)
    assert fields(error) == {"pictures": "must be at most 67108864 bytes in all"}
    error = await send(begin(), *[piece(b"", last=True)] * 1025)
    assert fields(error) == {"pictures": "must be at most 1024"}
    monkeypatch.setattr(limits, "MAX_PICTURES", 7)
    sheet = io.BytesIO()
    Image.new("RGB", (64, 64)).save(sheet, format="PNG")
    error = await send(begin(), piece(picture(0, 16), last=True), piece(sheet.getvalue(), last=True, tile=16))
    assert list(fields(error)) == ["pictures[1]"]
    assert "must be at most 7 pictures, tiles of sheets included" in fields(error)["pictures[1]"]


async def test_pixels_are_counted_before_they_are_made(
    send: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS", 2 * SIDE * SIDE)
    decoded: list[bytes] = []
    monkeypatch.setattr(limits, "decode_picture", lambda content: decoded.append(content) or decode_picture(content))
    pictures = [picture(seed) for seed in range(4)]
    error = await send(begin(), *(piece(content, last=True) for content in pictures))
    assert list(fields(error)) == ["pictures[2]"]
    assert decoded == pictures[:2]


async def test_the_description_is_checked_before_pictures_are_read(service: Service, client: AsyncClient) -> None:
    """The call ends although its pictures never do."""

    async def endless() -> AsyncIterator[CreateConceptRequest]:
        yield begin(described(names=[]))
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await ModelServiceStub(channel).CreateConcept(endless(), timeout=20)
    assert list(fields(error_of(caught.value))) == ["concept.names"]


async def test_a_few_upload_at_once_and_whoever_stalls_gives_the_place_back(
    service: Service, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "UPLOADS_OF_A_TENANT", 1)
    reading, left = asyncio.Event(), asyncio.Event()

    async def read(*arguments: object) -> limits.Upload:
        reading.set()
        try:
            return await limits.read_upload(*arguments)  # type: ignore[arg-type]
        finally:
            left.set()

    async def stalling() -> AsyncIterator[CreateConceptRequest]:
        yield begin()
        yield piece(picture(0), last=True)
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(service.address) as channel:
        with monkeypatch.context() as patched:
            patched.setattr(servicing, "read_upload", read)
            stalled = ModelServiceStub(channel).CreateConcept(stalling())
            await reading.wait()
            error = await refused(client.create_concept(described()))
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOADS_BUSY")
            assert error.retry_after == 5
            stalled.cancel()
            await left.wait()
        await client.create_concept(described())
        monkeypatch.setattr(uploads, "UPLOAD_SECONDS", 0.1)
        with pytest.raises(grpc.RpcError) as caught:
            await ModelServiceStub(channel).CreateConcept(stalling())
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    monkeypatch.undo()
    await client.create_concept(described())


async def test_there_is_a_most_of_concepts(
    client: AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicing, "MAX_CONCEPTS", len(await service.database.custom.names()) + 1)
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
    custom = await service.database.custom.named(["mine/planned", "hourglass", ""])
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
    extended = catalogue.extended(await service.database.custom.named(["mine/large"]))
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
    custom = await service.database.custom.named(["mine/overtaken"])
    file = tmp_path / "later.yaml"
    file.write_text("concepts: {mine/overtaken: {kind: style, names: [theirs]}}")
    later = Catalogue.load([str(file)], embedded=Path("none")).extended(custom)
    assert later.concept("mine/overtaken").names == ("theirs",)
    assert not later.custom


def test_an_upload_is_a_description_and_pieces() -> None:
    large = bytes(600_000)
    messages = list(upload_of(described("a"), [b"one", large], [b""], 7, "id"))
    assert messages[0].concept.request_id == "id"
    pieces = [message.picture for message in messages[1:]]
    assert [piece.last for piece in pieces] == [True, False, False, True, True]
    assert b"".join(piece.chunk for piece in pieces) == b"one" + large
    assert [(piece.near_miss, piece.tile) for piece in pieces if piece.last] == [(False, 7), (False, 7), (True, 7)]
