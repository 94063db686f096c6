"""TLS and mTLS: who gets in, and which files are refused."""

import ssl
from pathlib import Path

import grpc
import pytest
import trustme

from support.coordinators import free_port
from support.registering import nothing_registered
from unerase import AsyncClient, ClientSettings, TLSConfig, UneraseError
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.api.server import Server
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.errors import domain_error
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.encryption import Certificates

from .guarded import Guarded, audit_service, campaign_service, server_info, written


async def test_a_client_that_does_not_encrypt_gets_nothing(guarded: Guarded) -> None:
    async with AsyncClient(guarded.address, settings=ClientSettings(timeout_seconds=3)) as client:
        with pytest.raises(UneraseError) as refused:
            await client.models()
    assert refused.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_mtls_lets_in_whose_certificate_is_known(
    tmp_path: Path, authority: trustme.CA, strangers: trustme.CA, catalogue: Catalogue, store: ArtifactStore
) -> None:
    (tmp_path / "clients.pem").write_bytes(authority.cert_pem.bytes())
    certificates = Certificates.of(*written(tmp_path, authority), str(tmp_path / "clients.pem"))
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    audits, campaigns = audit_service(database, catalogue, store), campaign_service(database, catalogue, store)
    models = ModelServicer(catalogue, store, database, None, None, nothing_registered(catalogue, store, database), None)  # type: ignore[arg-type]
    server = Server(audits, campaigns, models, server_info(), Metrics(), Gate(None), domain_error)
    port = free_port()
    await server.start("127.0.0.1", port, certificates)

    async def presets(issuer: trustme.CA | None) -> int:
        issued = issuer.issue_cert("client.example") if issuer else None
        tls = TLSConfig(
            root_certificates=authority.cert_pem.bytes(),
            client_certificate=issued.cert_chain_pems[0].bytes() if issued else None,
            client_key=issued.private_key_pem.bytes() if issued else None,
        )
        settings = ClientSettings(tls=tls, timeout_seconds=3)
        async with AsyncClient(f"127.0.0.1:{port}", settings=settings) as client:
            return len((await client.evaluations()).presets)

    try:
        assert await presets(authority)
        for stranger in (None, strangers):
            with pytest.raises(UneraseError) as refused:
                await presets(stranger)
            assert refused.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        # Renewed in place, by another authority: the next connection meets the new one.
        written(tmp_path, strangers)
        tls = TLSConfig(
            root_certificates=strangers.cert_pem.bytes(),
            client_certificate=(issued := authority.issue_cert("client.example")).cert_chain_pems[0].bytes(),
            client_key=issued.private_key_pem.bytes(),
        )
        async with AsyncClient(f"127.0.0.1:{port}", settings=ClientSettings(tls=tls, timeout_seconds=10)) as client:
            assert (await client.evaluations()).presets
    finally:
        await server.stop(None)
        await database.close()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, authority: trustme.CA) -> None:
    certificate, _ = written(tmp_path / "one", authority)
    _, key = written(tmp_path / "other", authority)
    with pytest.raises(ssl.SSLError):
        Certificates.of(certificate, key, "")
    assert Certificates.of("", "", "") is None
