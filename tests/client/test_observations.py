"""An audit's observations as an Arrow table."""

import subprocess
import sys

import pyarrow
import pytest

from support.scripted_server import AUDIT_ID, Script
from unerase import UneraseError
from unerase.v1.audits_pb2 import AuditSpec, GetReportRequest, ReportContent
from unerase.v1.types_pb2 import Judgement, Observation, SampleStatus
from unerase_backend.report.parquet import render_parquet


def test_observations_are_a_table(connect, address: str, script: Script) -> None:
    seen = [
        Observation(
            evaluation="standard-prompt",
            role=role,
            concept="hourglass",
            case_index=case,
            status=SampleStatus.SAMPLE_STATUS_SCORED,
            judgements=[Judgement(judge=name, score=0.5, detected=case == 0) for name in ("clip", "one", "two")],
        )
        for role in (1, 2)
        for case in range(3)
    ]
    content = ReportContent(spec=AuditSpec(subject="testbed/uce", concept="hourglass"))
    script.parquet = render_parquet(AUDIT_ID, content, [], seen)
    with connect(address) as client:
        table = client.observations(AUDIT_ID)
    assert isinstance(table, pyarrow.Table)
    assert table.num_rows == 6
    assert set(table.column("role").to_pylist()) == {"subject", "reference"}
    assert sum(table.column("judge_detected").to_pylist()) == 2
    assert {"evaluation", "case_index", "measures", "picture_digest"} <= set(table.column_names)


def test_what_is_no_parquet_file_is_said(connect, address: str, script: Script) -> None:
    script.parquet = b"PAR1 and no more"
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.observations(AUDIT_ID)
    assert caught.value.reason == "PARQUET_UNREADABLE"


WITHOUT = """
import asyncio, sys
from importlib import machinery

find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = classmethod(
    lambda _, name, *rest: None if name.partition(".")[0] == "pyarrow" else find(name, *rest)
)
from unerase import AsyncClient, Client, UneraseError

def asynchronous():
    asyncio.run(AsyncClient(sys.argv[1]).observations("a1"))

for ask in (lambda: Client(sys.argv[1]).observations("a1"), asynchronous):
    try:
        ask()
    except UneraseError as error:
        print(error)
"""


def test_without_pyarrow_the_extra_is_named_before_anything_is_asked(address: str, script: Script) -> None:
    """In a process where it cannot be found."""
    shown = subprocess.run(
        [sys.executable, "-c", WITHOUT, address], capture_output=True, text=True, check=True, timeout=60
    )
    said = "ARROW_MISSING: observations as a table need pyarrow; install it with: pip install 'unerase[arrow]'"
    assert shown.stdout.splitlines() == [said, said]
    assert not script.seen(GetReportRequest)
