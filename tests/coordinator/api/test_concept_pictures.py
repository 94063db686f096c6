"""Pictures of custom concepts that are refused: each with its field and its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unerase import AsyncClient
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.pictures import decode_picture

from .conftest import INVALID, SIDE, Service, described, fields, picture, refused


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


def encoded(form: str, mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(picture(0))).convert(mode).save(content, format=form)
    return content.getvalue()


def see_through() -> bytes:
    content, image = io.BytesIO(), Image.open(io.BytesIO(picture(0)))
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(content, format="PNG")
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
        (b"", "damaged or not a PNG, JPEG or WebP file"),
        (b"\x89PNG\r\n\x1a\n", "damaged or not a PNG, JPEG or WebP file"),
        (picture(0)[:-200], "damaged or not a PNG, JPEG or WebP file"),
        (encoded("TIFF"), "damaged or not a PNG, JPEG or WebP file"),
        (encoded("GIF"), "damaged or not a PNG, JPEG or WebP file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "damaged or not a PNG, JPEG or WebP file"),
        (bomb(1_000_000), "1000000 x 1000000 pixels, too many"),
        (bomb(5000), "5000 x 5000 pixels, too many"),
        (bomb(4000), "must have 8 to 2048 pixels a side, not 4000"),
        (bomb(SIDE), "damaged or not a PNG, JPEG or WebP file"),
        (unfolding(b"name\0\0", b"iCCP"), "damaged or not a PNG, JPEG or WebP file"),
        (unfolding(b"name\0\0", b"zTXt"), "damaged or not a PNG, JPEG or WebP file"),
        (unfolding(b"name\0\1\0\0\0", b"iTXt"), "damaged or not a PNG, JPEG or WebP file"),
        (crowded(4096), "more than 4096 chunks"),
        (animated(), "not an animation"),
        (chunk(b"IHDR", b"")[:4] * 1000, "damaged or not a PNG, JPEG or WebP file"),
        (narrow(width=32, height=33), "must be square, not 32 x 33 pixels"),
        (narrow(width=4, height=4), "must have 8 to 2048 pixels a side, not 4"),
        (picture(0, 64), "must have 32 pixels a side, as those before it, not 64"),
        (see_through(), "must be opaque"),
        (encoded("JPEG", "CMYK"), "is in CMYK"),
        (encoded("JPEG")[:-400], "damaged or not a PNG, JPEG or WebP file"),
        (encoded("WEBP")[:-400], "damaged or not a PNG, JPEG or WebP file"),
        (transparent_palette(), "must be opaque"),
        (deep(), "16 bits a channel, and 8 are read"),
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
    assert await service.database.concepts.named([concept.name]) == []


async def test_every_bad_picture_is_named_at_once(client: AsyncClient) -> None:
    error = await refused(client.create_concept(described(), [b"a", picture(1), b"b"]))
    assert list(fields(error)) == ["pictures[0]", "pictures[2]"]


@pytest.mark.parametrize(
    ("tile", "field", "description"),
    [
        (24, "pictures[0]", "cannot be cut into tiles of 24"),
        (4, "pictures[0]", "must have 8 to 2048 pixels a side, not 4"),
        (2**32 - 1, "pictures[0]", "must have 8 to 2048"),
        (16, "pictures[0].tiles[1]", "is the same picture as pictures[0].tiles[0]"),
    ],
)
async def test_a_bad_sheet_is_named(client: AsyncClient, tile: int, field: str, description: str) -> None:
    error = await refused(client.create_concept(described(), [narrow(width=64, height=32)], tile=tile))
    assert description in fields(error)[field]


async def test_every_format_is_read_and_kept_as_the_same_pixels(client: AsyncClient, store: ArtifactStore) -> None:
    sent = [picture(1), encoded("JPEG"), encoded("WEBP"), picture(2, mode="RGBA"), picture(3, mode="L")]
    created = await client.create_concept(described(), sent)
    for digest, content in zip(created.picture_digests, sent, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(decode_picture(store.get(digest)), shown)
