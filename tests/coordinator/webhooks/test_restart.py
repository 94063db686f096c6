"""Webhooks of a real coordinator, which is killed before what they tell of has ended."""

import asyncio
import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from support.receiver import receiving
from support.simulated import say, start_simulated, unsay
from unerase.v1 import audits_pb2
from unerase_backend.coordinator.webhooks.signing import signed_headers

from ..campaigns.simulation import EDITED, TEMPLATE, Backend, catalogue_of_many, spec_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjSw"


async def test_an_audit_and_a_campaign_tell_their_end_after_a_crash(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"secrets": {"*": [SECRET]}}))
    catalogue = catalogue_of_many(tmp_path / "catalogue")
    async with receiving() as receiver:
        host = f"localhost:{receiver.port}"
        settings: dict[str, Any] = {"webhook_internal_hosts": [host], "webhook_secrets": str(secrets)}

        def create_and_crash() -> None:
            say(tmp_path, "hold-all")
            running = start_simulated(tmp_path, catalogue, **settings)
            backend = Backend(tmp_path, running)
            spec = json_format.ParseDict(
                TEMPLATE | {"subject": EDITED[0], "concept": "hourglass"}, audits_pb2.AuditSpec()
            )
            request = audits_pb2.CreateAuditRequest(request_id="audit", spec=spec, webhook=f"http://{host}/audit")
            backend.call("Audit", "CreateAudit", request)
            backend.create("campaign", spec_of(EDITED[:2]), webhook=f"http://{host}/campaign", labels={"release": "1"})
            running.end()
            unsay(tmp_path, "hold-all")

        await asyncio.to_thread(create_and_crash)
        assert receiver.bodies == []
        running = await asyncio.to_thread(start_simulated, tmp_path, catalogue, **settings)
        try:
            async with asyncio.timeout(120):
                while len(set(receiver.paths)) < 2:
                    receiver.came.clear()
                    await receiver.came.wait()
        finally:
            running.end()
        told = {path: json.loads(body) for path, body in zip(receiver.paths, receiver.bodies, strict=True)}
    assert told["/audit"]["data"]["request_id"] == "audit"
    assert (told["/audit"]["type"], told["/audit"]["data"]["state"]) == ("audit.ended", "SUCCEEDED")
    ended = told["/campaign"]["data"]
    assert (ended["state"], ended["cells_total"], ended["cells"]["succeeded"]) == ("SUCCEEDED", 2, 2)
    assert ended["labels"] == {"release": "1"}
    # A campaign's audits tell nobody.
    assert {path: receiver.paths.count(path) for path in told} == {"/audit": 1, "/campaign": 1}
    for headers, body in zip(receiver.headers, receiver.bodies, strict=True):
        wanted = signed_headers(headers["webhook-id"], int(headers["webhook-timestamp"]), body, [SECRET])
        assert headers["webhook-signature"] == wanted["webhook-signature"]
