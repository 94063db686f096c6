"""The content of a campaign's report as bytes: written and read cell by cell, in the wire format of its message.

The bytes are those of `CampaignReportContent.SerializeToString(deterministic=True)`: fields in order of their numbers,
each cell behind the one before. A campaign's verdicts together may take gigabytes, so they are never all in memory.
"""

from collections.abc import Iterator
from typing import IO

from unerase.v1.campaigns_pb2 import CampaignReportCell, CampaignReportContent, CampaignSpec
from unerase.v1.gates_pb2 import GateResult

_SPEC, _CELLS, _GATE = (
    CampaignReportContent.DESCRIPTOR.fields_by_name[name].number for name in ("spec", "cells", "gate_result")
)
# The wire type of messages.
_LENGTH_DELIMITED = 2


def write_part(
    file: IO[bytes],
    *,
    spec: CampaignSpec | None = None,
    cell: CampaignReportCell | None = None,
    gate: GateResult | None = None,
) -> None:
    """Write one part behind those before: the specification, then each cell, then the gate's result."""
    part = CampaignReportContent(spec=spec, cells=() if cell is None else [cell], gate_result=gate)
    file.write(part.SerializeToString(deterministic=True))


class ContentFile:
    """A content in a file that can be read from any position."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def spec(self) -> CampaignSpec:
        """Return the campaign's specification."""
        return next(CampaignSpec.FromString(part) for number, part in self._parts() if number == _SPEC)

    def cells(self) -> Iterator[CampaignReportCell]:
        """Yield the cells in their order; several readers may not take turns."""
        return (CampaignReportCell.FromString(part) for number, part in self._parts() if number == _CELLS)

    def gate_result(self) -> GateResult | None:
        """Return what the campaign's own gate said; None without a gate."""
        return next((GateResult.FromString(part) for number, part in self._parts() if number == _GATE), None)

    def _parts(self) -> Iterator[tuple[int, bytes]]:
        """Yield each part with the number of its field.

        Raises:
            ValueError: the file is cut short, or no content.
        """
        self._file.seek(0)
        while (tag := self._varint()) is not None:
            length = self._varint()
            part = b"" if length is None else self._file.read(length)
            if length is None or len(part) != length or tag & 7 != _LENGTH_DELIMITED:
                raise ValueError("the file holds no whole content of a campaign's report")
            yield tag >> 3, part

    def _varint(self) -> int | None:
        """Return the next number; None at the end of the file."""
        value = shift = 0
        while byte := self._file.read(1):
            value |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                return value
        return None
