"""The upload of a custom concept: its description, then its pictures in pieces, read within limits.

The bytes of a picture are not stored as sent. Its header is checked first; then it is decoded and encoded again, like
the tiles of a catalogue's sheets. Each problem names its picture; `pictures[0]` is the first one sent.
"""

import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unerase.v1.models_pb2 import CreateConceptRequest, PictureChunk
from unerase.v1.types_pb2 import Concept
from unerase_backend.catalogue.sheets import tiles
from unerase_backend.coordinator.api.request_ids import check_request_id
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.picture_files import picture_size, read_picture
from unerase_backend.runtime.pictures import UnreadablePictureError, encode_picture

MAX_PICTURES = 1024
MAX_PICTURE_BYTES = 8 * 1024 * 1024
MAX_UPLOAD_BYTES = 64 * 1024 * 1024
SIDES = (8, 2048)
# Decoded pixels of all pictures together, as in 1,024 pictures of 512 pixels a side.
MAX_PIXELS = 1024 * 512 * 512
# Decoding stops after this many problems.
_MAX_VIOLATIONS = 20


@dataclass(frozen=True)
class SentPicture:
    """One picture as it was sent: a file of PNG, JPEG or WebP, and the side of the tiles to cut it into, or 0."""

    content: bytes
    near_miss: bool
    tile: int


@dataclass(frozen=True)
class Upload:
    """A whole upload as it was sent."""

    request_id: str
    concept: Concept
    pictures: list[SentPicture]


@dataclass
class Pictures:
    """The pictures of a concept as PNG, encoded again, all with the same side in pixels."""

    concept: list[bytes] = field(default_factory=list)
    near_misses: list[bytes] = field(default_factory=list)
    side: int = 0

    def digest(self) -> str:
        """Return SHA-256 over all pictures, in order."""
        whole = hashlib.sha256()
        for kind, pictures in ((b"concept", self.concept), (b"near miss", self.near_misses)):
            for picture in pictures:
                whole.update(kind + hashlib.sha256(picture).digest())
        return whole.hexdigest()


async def read_upload(
    requests: AsyncIterator[CreateConceptRequest],
    check: Callable[[Concept], Awaitable[None]],
    came: Callable[[int], None],
) -> Upload:
    """Read an upload to its end; `check` is called with the description before the first picture is read.

    `came` is called with the size of each message in bytes.

    Raises:
        InvalidRequestError: messages are out of order, a picture does not end, a limit is exceeded, or `check` raised.
    """
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "concept":
        raise InvalidRequestError.of(FieldViolation("concept", "must be in the first message"))
    came(first.ByteSize())
    check_request_id(first.concept.request_id)
    await check(first.concept.concept)
    pictures: list[SentPicture] = []
    pieces = io.BytesIO()
    total = 0
    async for request in requests:
        if request.WhichOneof("part") != "picture":
            raise _bad(
                f"pictures[{len(pictures)}]", "must be a piece of a picture; the description may be sent only once"
            )
        piece = request.picture
        came(len(piece.chunk))
        total += len(piece.chunk)
        if total > MAX_UPLOAD_BYTES:
            raise _bad("pictures", f"must be at most {MAX_UPLOAD_BYTES} bytes in all")
        if len(pictures) == MAX_PICTURES:
            raise _bad("pictures", f"must be at most {MAX_PICTURES}")
        if pieces.tell() + len(piece.chunk) > MAX_PICTURE_BYTES:
            raise _bad(f"pictures[{len(pictures)}]", f"must be at most {MAX_PICTURE_BYTES} bytes")
        pieces.write(piece.chunk)
        if piece.last:
            pictures.append(_sent(piece, pieces.getvalue()))
            pieces = io.BytesIO()
    if pieces.tell():
        raise _bad(f"pictures[{len(pictures)}]", "ends before its last piece")
    return Upload(first.concept.request_id, first.concept.concept, pictures)


def decode_pictures(sent: Sequence[SentPicture]) -> Pictures:
    """Decode the pictures, cut sheets into tiles, and encode them again.

    Raises:
        InvalidRequestError: a picture is damaged or would not stay what it is (`picture_files`), is not square, has
            another side than the first, comes twice, or is a sheet that does not divide into tiles; or there are too
            many.
    """
    pictures = Pictures()
    violations: list[FieldViolation] = []
    seen: dict[bytes, str] = {}
    pixels = count = 0
    for index, each in enumerate(sent):
        name = f"pictures[{index}]"
        try:
            width, height = picture_size(each.content)
            problem = _size_problem(width, height, each.tile, pictures.side)
            if problem:
                violations.append(FieldViolation(name, problem))
                continue
            pictures.side = each.tile or width
            pixels += width * height
            count += (width // pictures.side) * (height // pictures.side)
            # Checked before anything is decoded.
            if pixels > MAX_PIXELS or count > MAX_PICTURES:
                most = f"{MAX_PICTURES} pictures, tiles of sheets included, and {MAX_PIXELS} pixels"
                violations.append(FieldViolation(name, f"is one too many: all pictures together may be at most {most}"))
                break
            kept = pictures.near_misses if each.near_miss else pictures.concept
            for part, tile in _tiles(name, each):
                kept.append(encode_picture(tile))
                digest = hashlib.sha256(kept[-1]).digest()
                if digest in seen:
                    violations.append(FieldViolation(part, f"is the same picture as {seen[digest]}"))
                seen.setdefault(digest, part)
        except UnreadablePictureError as error:
            violations.append(FieldViolation(name, error.message))
        if len(violations) >= _MAX_VIOLATIONS:
            break
    if violations:
        raise InvalidRequestError.of(*violations)
    return pictures


def _size_problem(width: int, height: int, tile: int, side: int) -> str:
    if not tile and width != height:
        return f"must be square, not {width} x {height} pixels: crop it; for a sheet, give the side of its tiles"
    own = tile or width
    if not SIDES[0] <= own <= SIDES[1]:
        return f"must have {SIDES[0]} to {SIDES[1]} pixels a side, not {own}"
    if width % own or height % own:
        return f"a sheet of {width} x {height} pixels cannot be cut into tiles of {own}"
    if side not in (0, own):
        return f"must have {side} pixels a side, as those before it, not {own}: resize it"
    return ""


def _tiles(name: str, sent: SentPicture) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    pixels = read_picture(sent.content)
    if not sent.tile:
        yield name, pixels
        return
    for index, tile in enumerate(tiles(pixels, sent.tile)):
        yield f"{name}.tiles[{index}]", tile


def _sent(last: PictureChunk, content: bytes) -> SentPicture:
    return SentPicture(content, last.near_miss, last.tile)


def _bad(name: str, description: str) -> InvalidRequestError:
    return InvalidRequestError.of(FieldViolation(name, description))
