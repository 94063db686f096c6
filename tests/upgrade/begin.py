"""Leave a data folder as a version does that is killed in the middle of an audit, for a later version to go on from.

    python tests/upgrade/begin.py FILE.tar.xz

Run it with the version that is about to be followed; the file is kept beside this one under that version's name.
"""

import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import psutil

from unerase import Client
from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase.v1.types_pb2 import EvaluationRequest, Observation

_SERVE = (
    "import sys; from unerase_backend.serve import run; "
    "run(port=0, data_dir=sys.argv[1], catalogues=[sys.argv[2]], ray_auth='disabled')"
)
CATALOGUE = "catalogue.yaml"
"""The file of the archive that has the guarded model."""
_GUARDED = """\
models:
  own/guarded:
    base: testbed/uce
    guards: [{kind: prompt-filter, words: [sandglass]}, {kind: negative-prompt, text: a picture of a hourglass}]
"""


def spec(subject: str) -> AuditSpec:
    """Return an audit that is begun: of a guarded model by both accesses."""
    noise = EvaluationRequest(name="noise-based")
    noise.parameters.update({"etas": [1.0], "variance_scales": [1.0]})
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt"), noise], allow_incomplete=True)
    return AuditSpec(subject=subject, concept="hourglass", cases=2, steps=40, seed_base=5, battery=battery)


def main(file: Path) -> None:
    """Begin the audits, kill everything once a unit of each is done, and pack the folder."""
    with tempfile.TemporaryDirectory() as data:
        catalogue = Path(data) / CATALOGUE
        catalogue.write_text(_GUARDED)
        command = [sys.executable, "-c", _SERVE, data, str(catalogue)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        with Client(address) as client:
            audits = [client.create_audit(spec(subject)) for subject in ("testbed/uce", "own/guarded")]
            for audit in audits:
                for event in client.watch(audit.id):
                    if event.WhichOneof("event") == "unit_done":
                        break
        killed = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in killed:
            each.kill()
        psutil.wait_procs(killed)
        with tarfile.open(file, "w:xz") as archive:
            for part in ("coordinator", CATALOGUE, *_pictures(Path(data))):
                archive.add(Path(data) / part, part)


def _pictures(data: Path) -> list[str]:
    """Return the files of what was observed; all others are put there again."""
    with sqlite3.connect(data / "coordinator" / "audits.sqlite") as connection:
        rows = connection.execute("select message from unerase_observations").fetchall()
    digests = {Observation.FromString(row[0]).picture_digest for row in rows}
    return [f"artifacts/artifacts/{digest[:2]}/{digest}" for digest in sorted(digests)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
