"""The content of a campaign's report, written cell by cell: the bytes of the whole message, and back."""

import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase.v1.campaigns_pb2 import CampaignReportCell, CampaignReportContent, CampaignSpec
from unerase.v1.gates_pb2 import GateResult
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.coordinator.campaigns.content import read_cells, read_gate, read_spec, write_part
from unerase_backend.runtime.artifacts import ArtifactStore

CELLS = st.lists(
    st.builds(
        lambda subject, statement: CampaignReportCell(subject=subject, verdict=Verdict(statement=statement)),
        st.text(max_size=5),
        st.text(max_size=300),
    ),
    max_size=5,
)
GATES = st.none() | st.builds(GateResult, statement=st.text(max_size=5), failed=st.integers(0, 3))


@given(CELLS, GATES)
@settings(max_examples=50, deadline=None)
def test_the_bytes_are_those_of_the_message(cells: list[CampaignReportCell], gate: GateResult | None) -> None:
    spec = CampaignSpec(subjects=[cell.subject for cell in cells], window=3)
    whole = CampaignReportContent(spec=spec, cells=cells, gate_result=gate)
    file = io.BytesIO()
    write_part(file, spec=spec)
    for cell in cells:
        write_part(file, cell=cell)
    if gate is not None:
        write_part(file, gate=gate)
    assert file.getvalue() == whole.SerializeToString(deterministic=True)
    assert read_spec(file) == spec
    assert list(read_cells(file)) == cells
    assert read_gate(file) == gate


def test_a_file_that_was_cut_is_refused() -> None:
    file = io.BytesIO()
    write_part(file, cell=CampaignReportCell(subject="a name"))
    for size in range(1, len(file.getvalue())):
        with pytest.raises(ValueError, match="no whole message"):
            list(read_cells(io.BytesIO(file.getvalue()[:size])))


def test_a_file_is_stored_under_its_digest(tmp_path: Path) -> None:
    store, content = ArtifactStore(str(tmp_path)), b"0123456789" * 300_000
    with tempfile.TemporaryFile() as file:
        file.write(content)
        digest = store.put_file(file)
        assert digest == store.put(content) == store.put_file(file)
    assert store.get(digest) == content
