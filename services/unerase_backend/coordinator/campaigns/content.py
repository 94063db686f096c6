"""The content of a campaign's report as a file, which is written and read cell by cell.

The bytes are those of `CampaignReportContent.SerializeToString(deterministic=True)`: fields in order of their numbers,
each cell behind the one before. A campaign's verdicts together may take gigabytes, so they are never all in memory.
"""

from collections.abc import Iterator
from typing import IO

from unerase.v1.campaigns_pb2 import CampaignReportCell, CampaignReportContent, CampaignSpec
from unerase.v1.gates_pb2 import GateResult
from unerase_backend.coordinator.campaigns.wire import parts

_SPEC, _CELLS, _GATE = (
    CampaignReportContent.DESCRIPTOR.fields_by_name[name].number for name in ("spec", "cells", "gate_result")
)


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


def read_spec(file: IO[bytes]) -> CampaignSpec:
    """Return the campaign's specification."""
    return next(CampaignSpec.FromString(part) for number, part in parts(file) if number == _SPEC)


def read_cells(file: IO[bytes]) -> Iterator[CampaignReportCell]:
    """Yield the cells in their order; several readers may not take turns."""
    return (CampaignReportCell.FromString(part) for number, part in parts(file) if number == _CELLS)


def read_gate(file: IO[bytes]) -> GateResult | None:
    """Return what the campaign's own gate said; None without a gate."""
    return next((GateResult.FromString(part) for number, part in parts(file) if number == _GATE), None)
