"""The upload of a custom concept: its messages in order, within bounds and in time."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from PIL import Image

from unerase import AsyncClient
from unerase._errors import error_of
from unerase._transfers import upload_of
from unerase.v1.models_pb2 import CreateConceptRequest
from unerase.v1.models_pb2_grpc import ModelServiceStub
from unerase_backend.coordinator.api import concept_upload, model_service, upload_limits
from unerase_backend.runtime.picture_files import read_picture

from .conftest import INVALID, SIDE, Service, begin, described, fields, picture, piece, refused


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
    monkeypatch.setattr(concept_upload, "MAX_PICTURES", 7)
    sheet = io.BytesIO()
    Image.new("RGB", (64, 64)).save(sheet, format="PNG")
    error = await send(begin(), piece(picture(0, 16), last=True), piece(sheet.getvalue(), last=True, tile=16))
    assert list(fields(error)) == ["pictures[1]"]
    assert "all pictures together may be at most 7 pictures, tiles of sheets included" in fields(error)["pictures[1]"]


async def test_pixels_are_counted_before_they_are_made(
    send: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept_upload, "MAX_PIXELS", 2 * SIDE * SIDE)
    decoded: list[bytes] = []
    monkeypatch.setattr(
        concept_upload, "read_picture", lambda content: decoded.append(content) or read_picture(content)
    )
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
    monkeypatch.setattr(upload_limits, "UPLOADS_OF_A_TENANT", 1)
    reading, left = asyncio.Event(), asyncio.Event()

    async def read(*arguments: object) -> concept_upload.Upload:
        reading.set()
        try:
            return await concept_upload.read_upload(*arguments)  # type: ignore[arg-type]
        finally:
            left.set()

    async def stalling() -> AsyncIterator[CreateConceptRequest]:
        yield begin()
        yield piece(picture(0), last=True)
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(service.address) as channel:
        with monkeypatch.context() as patched:
            patched.setattr(model_service, "read_upload", read)
            stalled = ModelServiceStub(channel).CreateConcept(stalling())
            await reading.wait()
            error = await refused(client.create_concept(described()))
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOADS_BUSY")
            assert error.retry_after == 5
            stalled.cancel()
            await left.wait()
        await client.create_concept(described())
        monkeypatch.setattr(upload_limits, "UPLOAD_SECONDS", 0.1)
        with pytest.raises(grpc.RpcError) as caught:
            await ModelServiceStub(channel).CreateConcept(stalling())
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    monkeypatch.undo()
    await client.create_concept(described())


def test_an_upload_is_a_description_and_pieces() -> None:
    large = bytes(600_000)
    messages = list(upload_of(described("a"), [b"one", large], [b""], 7, "id"))
    assert messages[0].concept.request_id == "id"
    pieces = [message.picture for message in messages[1:]]
    assert [piece.last for piece in pieces] == [True, False, False, True, True]
    assert b"".join(piece.chunk for piece in pieces) == b"one" + large
    assert [(piece.near_miss, piece.tile) for piece in pieces if piece.last] == [(False, 7), (False, 7), (True, 7)]
