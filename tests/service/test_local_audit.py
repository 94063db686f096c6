"""`unerase audit --local` that is broken off: its backend ends, and what was accepted is gone on with."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.serving import serving
from unerase import AuditState, Client


@pytest.mark.backends
def test_ctrl_c_ends_the_backend_and_keeps_the_audit(tmp_path: Path) -> None:
    data = tmp_path / "data"
    arguments = ["audit", "testbed/uce", "--concept", "hourglass", "--battery", "quick", "--local"]
    # A session of its own: Ctrl-C reaches every process of the terminal's.
    command = subprocess.Popen(
        [sys.executable, "-m", "unerase", *arguments, "--data-dir", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )
    assert command.stderr is not None
    accepted = next(line for line in command.stderr if line.startswith("audit "))
    audit_id = accepted.split()[1]
    backend = psutil.Process(command.pid).children(recursive=True)
    os.killpg(command.pid, signal.SIGINT)
    try:
        said = command.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        # It says where it stands.
        command.send_signal(signal.SIGABRT)
        said = command.communicate()[1]
    assert command.returncode == 130, said
    assert "Traceback" not in said, said
    assert f"`unerase serve --data-dir {data}` resumes it" in said
    assert f"`unerase watch {audit_id}` follows it" in said
    _, alive = psutil.wait_procs(backend, timeout=60)
    assert not alive
    with serving(data) as running, Client(running.address) as client:
        assert client.get_audit(audit_id).state in (
            AuditState.AUDIT_STATE_PENDING,
            AuditState.AUDIT_STATE_RUNNING,
        )
        assert client.cancel(audit_id).state == AuditState.AUDIT_STATE_CANCELLED
