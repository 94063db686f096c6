"""Content that crosses the wire in pieces: reports and artefacts that come, pictures that are sent. Without any I/O."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import grpc

from unerase._errors import UneraseError
from unerase.v1.audits_pb2 import GetReportResponse, ReadArtifactResponse
from unerase.v1.models_pb2 import CreateConceptRequest, NewConcept, PictureChunk
from unerase.v1.types_pb2 import Concept

Piece = TypeVar("Piece", GetReportResponse, ReadArtifactResponse)

PIECE_BYTES = 256 * 1024


def joined(pieces: Sequence[GetReportResponse] | Sequence[ReadArtifactResponse]) -> bytes:
    """Return the content of a transfer.

    Raises:
        UneraseError: DATA_LOSS, the pieces do not have as many bytes as the first one says.
    """
    content = b"".join(piece.chunk for piece in pieces)
    size = pieces[0].size_bytes if pieces else 0
    if size != len(content):
        raise UneraseError(
            grpc.StatusCode.DATA_LOSS, f"{len(content)} bytes arrived instead of {size}", reason="TRANSFER_INCOMPLETE"
        )
    return content


def upload_of(
    concept: Concept, pictures: Sequence[bytes], near_misses: Sequence[bytes], tile: int, request_id: str
) -> Iterator[CreateConceptRequest]:
    """Yield the messages of a concept's upload: its description, then each picture in pieces."""
    yield CreateConceptRequest(concept=NewConcept(request_id=request_id, concept=concept))
    for near_miss, sent in ((False, pictures), (True, near_misses)):
        for picture in sent:
            starts = range(0, max(len(picture), 1), PIECE_BYTES)
            for start in starts:
                piece = PictureChunk(chunk=picture[start : start + PIECE_BYTES], last=start == starts[-1])
                if piece.last:
                    piece.near_miss, piece.tile = near_miss, tile
                yield CreateConceptRequest(picture=piece)
