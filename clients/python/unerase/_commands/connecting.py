"""A client for one command, and the reason if no backend answers."""

import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import grpc

from unerase._client import Client
from unerase._commands.failing import ExitCode, fail, os_problem, reported
from unerase._environment import settings_from_environment
from unerase._errors import UneraseError
from unerase._local import local_backend
from unerase._settings import TLSConfig

_PROBE_SECONDS = 3.0
# What a client of HTTP/2 sends first, with empty settings; the server answers with a frame of settings too (RFC 9113,
# sections 3.4, 4.1 and 6.5).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_KIND_AT, _SETTINGS = 3, bytes([4])
_CERTIFICATE_WANTED = (
    "The backend at {} asks for a client certificate that it trusts: set UNERASE_TLS_CERTIFICATE and UNERASE_TLS_KEY."
)
_START = "start one with `unerase serve`, or name another with --address"
_CLOSED = "Something listens at {}, but it closes the connection without an answer: try again, or check --address."
_NO_ANSWER = (
    "Something listens at {}, but no answer came within {:g} s: a backend that starts or is busy may take longer; try "
    "again, or check --address."
)


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Yield a client of the backend at an address; turn errors into lines on stderr and an exit code."""
    try:
        settings = settings_from_environment()
        client = Client(address, settings=settings)
    except OSError as error:
        fail(os_problem(error), ExitCode.BAD_INPUT)
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)
    with reported(lambda error: _advice(error, address, settings.tls)), client:
        yield client


@contextmanager
def connected_or_started(address: str, local: bool, data_dir: Path | None) -> Iterator[Client]:
    """Yield a client of the backend at an address, or with `local` of one that lasts as long as the context."""
    with reported(), local_backend(data_dir) if local else nullcontext(address) as at, connected(at) as client:
        yield client


def _advice(error: UneraseError, address: str, tls: TLSConfig | None) -> str:
    # A backend that answers gives a reason; the reason of gRPC's own error is the name of its code.
    if error.reason != error.code.name:
        return ""
    # A backend that is only slow gets no advice here.
    unanswered = error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return why_silent(address, tls) if unanswered else ""


def why_silent(address: str, tls: TLSConfig | None) -> str:
    """Return why calls are not answered and what to do; empty if a test connection does not show it."""
    host, _, port = address.rpartition(":")
    if address.startswith("unix:") or "//" in address or not port.isdecimal():
        return f"No backend answers at {address}: {_START}."
    place = (host.strip("[]"), int(port))
    try:
        connection = socket.create_connection(place, timeout=_PROBE_SECONDS)
    except socket.gaierror:
        return f"There is no host named {host}: check --address."
    except ConnectionRefusedError:
        return f"No backend answers at {address}: {_START}."
    except OSError as error:
        return f"No backend answers at {address} ({error.strerror or 'timed out'}): {_START}."
    with connection:
        why = _why_no_tls(connection, address) if tls is None else _why_tls_fails(connection, host, address, tls)
    return why if why or tls is not None else _why_no_answer(place, address)


def _why_no_answer(place: tuple[str, int], address: str) -> str:
    """Return why a port that we called without TLS, and that expects none, does not answer."""
    try:
        with socket.create_connection(place, timeout=_PROBE_SECONDS) as connection:
            return _why_no_http2(connection, address, _CLOSED.format(address))
    except OSError:
        return f"No backend answers at {address}: {_START}."


def _why_no_http2(connection: socket.socket, address: str, closed: str) -> str:
    """Return why a port that takes connections does not answer as a backend does, `closed` if it ends them; else empty.

    A server of HTTP/2 answers the client's greeting with one of its own.
    """
    answer = b""
    try:
        # Whoever closes the connection at once may have answered all the same.
        with suppress(OSError):
            connection.sendall(_GREETING)
        while len(answer) <= _KIND_AT and (more := connection.recv(1024)):
            answer += more
    except TimeoutError:
        if not answer:
            return _NO_ANSWER.format(address, _PROBE_SECONDS)
    except OSError:
        pass
    if not answer:
        return closed
    if answer[_KIND_AT:][:1] == _SETTINGS:
        return ""
    return f"Something listens at {address}, but it does not answer like a backend: check --address."


def _why_no_tls(connection: socket.socket, address: str) -> str:
    """Return advice if a port that we called without TLS expects TLS; empty otherwise."""
    # Only a greeting is sent, so it does not matter whose certificate it is.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            pass
    except (OSError, ValueError) as error:
        # A TLS alert is an answer in TLS; a wrong version number, a closed connection or silence is not.
        if "ALERT" not in str(getattr(error, "reason", "")):
            return ""
    return (
        f"The backend at {address} expects TLS, and the command called it without TLS: set UNERASE_TLS=1, or "
        "UNERASE_TLS_CA to the file of its authority's certificate."
    )


def _why_tls_fails(connection: socket.socket, host: str, address: str, tls: TLSConfig) -> str:
    """Return why a port that we called with TLS does not answer."""
    try:
        context = _context(tls)
    except (OSError, ValueError) as error:
        return f"UNERASE_TLS_CA, UNERASE_TLS_CERTIFICATE or UNERASE_TLS_KEY holds no usable PEM: {error}."
    try:
        encrypted = context.wrap_socket(connection, server_hostname=tls.server_name or host.strip("[]"))
    except ssl.SSLCertVerificationError as error:
        return (
            f"The certificate of {address} is not trusted ({error.verify_message.rstrip('.')}): set UNERASE_TLS_CA to "
            "the file of its authority's certificate, and UNERASE_TLS_SERVER_NAME if the certificate has another name."
        )
    except TimeoutError:
        return _NO_ANSWER.format(address, _PROBE_SECONDS)
    except OSError as error:
        if "ALERT" in str(getattr(error, "reason", "")):
            return _CERTIFICATE_WANTED.format(address)
        return (
            f"Whatever listens at {address} does not speak TLS: unset UNERASE_TLS and the other UNERASE_TLS_* to call "
            "it without TLS, or check --address."
        )
    # With TLS 1.3 the handshake ends before the server checks the client's certificate. A server that rejects it then
    # closes the connection.
    with encrypted:
        return _why_no_http2(encrypted, address, _CERTIFICATE_WANTED.format(address))


def _context(tls: TLSConfig) -> ssl.SSLContext:
    authorities = tls.root_certificates.decode() if tls.root_certificates else None
    context = ssl.create_default_context(cadata=authorities)
    context.set_alpn_protocols(["h2"])
    if tls.client_certificate and tls.client_key:
        # Python reads a certificate only from a file.
        with tempfile.NamedTemporaryFile() as file:
            file.write(tls.client_certificate + b"\n" + tls.client_key)
            file.flush()
            context.load_cert_chain(file.name)
    return context
