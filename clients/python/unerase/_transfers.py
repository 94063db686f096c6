"""What crosses the wire in pieces: reports, artefacts and lists that come, pictures that are sent. Without any I/O."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from unerase._counting import count_of
from unerase._errors import UneraseError
from unerase.v1.audits_pb2 import GetReportResponse, ReadArtifactResponse
from unerase.v1.comparisons_pb2 import AuditComparison, CampaignComparison, CellComparison, CompareResponse
from unerase.v1.models_pb2 import CreateConceptRequest, NewConcept, PictureChunk
from unerase.v1.types_pb2 import Concept

Piece = TypeVar("Piece", GetReportResponse, ReadArtifactResponse)
Request = TypeVar("Request", bound=Message)


class Paged(Protocol):
    """A page of a list."""

    next_page_token: str


Page = TypeVar("Page", bound=Paged)

PIECE_BYTES = 256 * 1024
MOST_CELLS = 1000
"""As many cells as a page may have."""


def joined(pieces: Sequence[GetReportResponse] | Sequence[ReadArtifactResponse]) -> bytes:
    """Return the content of a transfer.

    Raises:
        UneraseError: DATA_LOSS, the pieces do not have as many bytes as the first one says.
    """
    content = b"".join(piece.chunk for piece in pieces)
    check_complete(pieces[0].size_bytes if pieces else 0, len(content))
    return content


def check_complete(size: int, arrived: int) -> None:
    """Check that as many bytes of a transfer arrived as its first piece says.

    Raises:
        UneraseError: DATA_LOSS, they did not.
    """
    if size != arrived:
        raise UneraseError(
            grpc.StatusCode.DATA_LOSS,
            f"{count_of(arrived, 'byte')} arrived instead of {size:,}",
            reason="TRANSFER_INCOMPLETE",
        )


def next_page(request: Request, page: Paged) -> Request | None:
    """Return the request for the page after this one; None after the last."""
    if not page.next_page_token:
        return None
    following = type(request)()
    following.CopyFrom(request)
    following.page_token = page.next_page_token  # type: ignore[attr-defined]
    return following


def compared_audits(parts: Sequence[CompareResponse]) -> AuditComparison:
    """Return the comparison of two audits that a backend has sent.

    Raises:
        UneraseError: DATA_LOSS, there is none.
    """
    for part in parts:
        if part.HasField("audits"):
            return part.audits
    raise _no_comparison()


def compared_campaigns(parts: Sequence[CompareResponse]) -> tuple[CampaignComparison, list[CellComparison]]:
    """Return the comparison of two campaigns that a backend has sent: the whole, and its cells in their order.

    Raises:
        UneraseError: DATA_LOSS, the whole is missing, which comes last.
    """
    cells = [part.cell for part in parts if part.HasField("cell")]
    for part in parts:
        if part.HasField("campaigns"):
            return part.campaigns, cells
    raise _no_comparison()


def _no_comparison() -> UneraseError:
    return UneraseError(
        grpc.StatusCode.DATA_LOSS, "the comparison ended before it was complete", reason="TRANSFER_INCOMPLETE"
    )


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
