"""The server's certificate, its key, and the certificate authorities of its clients: PEM files, read again when they
change.

The next connection gets a certificate that was renewed in place; open connections are not affected. If the files cannot
be read, or the key does not match the certificate, the certificates read last stay in use.
"""

import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

_logger = logging.getLogger(__name__)


@dataclass
class Certificates:
    """Paths of the PEM files; with `client_ca` clients must have a certificate of one of its authorities (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None
    _seen: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, certificate: str, key: str, client_ca: str) -> "Certificates | None":
        """Return the certificates of settings, after checking them; None if no certificate is given.

        Raises:
            OSError: a file cannot be read.
            ssl.SSLError: a file is not valid PEM of its kind, or the key does not match the certificate.
        """
        if not certificate:
            return None
        made = cls(Path(certificate), Path(key), Path(client_ca) if client_ca else None)
        made.context()
        made._seen = made._read()
        return made

    def context(self) -> ssl.SSLContext:
        """Return a context for a server of the standard library's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def credentials(self) -> Any:
        """Return credentials for gRPC, which asks for the files at each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(self._seen), self._changed, require_client_authentication=self.client_ca is not None
        )

    def _changed(self) -> Any:
        """Return the new configuration; None if nothing has changed."""
        try:
            content = self._read()
            if content == self._seen:
                return None
            self.context()
        except (OSError, ssl.SSLError):
            _logger.exception("the renewed certificates cannot be used; the earlier ones stay in use")
            return None
        self._seen = content
        _logger.info("the certificates were renewed")
        return self._configuration(content)

    def _read(self) -> tuple[bytes, ...]:
        return tuple(path.read_bytes() for path in (self.certificate, self.key, self.client_ca) if path is not None)

    @staticmethod
    def _configuration(content: tuple[bytes, ...]) -> Any:
        certificate, key, *authorities = content
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities[0] if authorities else None)
