"""What the command says where no backend answers: real sockets, real certificates."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from typer.testing import CliRunner, Result

from support.scripted_server import Script, serve
from unerase import TLSConfig
from unerase._cli import app
from unerase._commands.connecting import why_silent
from unerase._commands.failing import ExitCode


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a port that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UNERASE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


@pytest.fixture
def encrypted(authority: trustme.CA, script: Script) -> Iterator[str]:
    """A server that speaks TLS."""
    issued = authority.issue_cert("127.0.0.1", "unerase.test")
    pair = (issued.private_key_pem.bytes(), b"".join(each.bytes() for each in issued.cert_chain_pems))
    server, port = serve(script, "127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def mutual(authority: trustme.CA, script: Script) -> Iterator[str]:
    """A server that asks for a client certificate."""
    issued = authority.issue_cert("127.0.0.1")
    pair = (issued.private_key_pem.bytes(), b"".join(each.bytes() for each in issued.cert_chain_pems))
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    server, port = serve(script, "127.0.0.1:0", credentials)
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def ask(address: str, **environment: str) -> Result:
    variables = {f"UNERASE_{name}": value for name, value in environment.items()}
    ended = CliRunner().invoke(app, ["models", "--address", address], env={"COLUMNS": "80", **variables})
    assert isinstance(ended.exception, SystemExit | None)
    return ended


def test_in_the_clear_to_a_port_of_tls(encrypted: str) -> None:
    ended = ask(encrypted)
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert f"The backend at {encrypted} expects TLS" in ended.stderr
    assert "UNERASE_TLS_CA" in ended.stderr
    assert "No backend answers" not in ended.stderr


def test_in_the_clear_to_a_port_that_asks_for_certificates(mutual: str) -> None:
    assert f"The backend at {mutual} expects TLS" in ask(mutual).stderr


def test_tls_to_a_port_in_the_clear(address: str, authority_file: str) -> None:
    ended = ask(address, TLS_CA=authority_file)
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert f"Whatever listens at {address} does not speak TLS: unset UNERASE_TLS" in ended.stderr


def test_a_certificate_that_is_not_trusted(encrypted: str) -> None:
    ended = ask(encrypted, TLS="1")
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert f"The certificate of {encrypted} is not trusted" in ended.stderr


def test_a_certificate_of_another_name(encrypted: str, authority_file: str) -> None:
    assert ask(encrypted, TLS_CA=authority_file).exit_code == 0
    ended = ask(encrypted, TLS_CA=authority_file, TLS_SERVER_NAME="other.test")
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert "UNERASE_TLS_SERVER_NAME" in ended.stderr


def test_a_certificate_of_the_clients_that_is_missing(mutual: str, authority_file: str) -> None:
    ended = ask(mutual, TLS_CA=authority_file)
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert "asks for a client certificate" in ended.stderr


def test_an_authority_that_is_none(encrypted: str, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    ended = ask(encrypted, TLS_CA=str(tmp_path / "no.pem"))
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert "holds no usable PEM" in ended.stderr


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Bound and not listening: the port is nobody else's, and refuses.
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = ask(address)
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert f"No backend answers at {address}: start one with `unerase serve`" in ended.stderr


def test_a_host_that_there_is_not() -> None:
    ended = ask("no-such-host.invalid:50051")
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert "There is no host named no-such-host.invalid" in ended.stderr or "No backend answers" in ended.stderr


@pytest.mark.parametrize("variables", [{}, {"TLS": "1"}])
def test_no_answer_in_time_is_no_wrong_protocol(
    silent: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """A backend under load takes connections before it gets round to answering them."""
    monkeypatch.setattr("unerase._commands.connecting._PROBE_SECONDS", 0.2)
    ended = ask(silent, **variables)
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert f"Something listens at {silent}, but no answer came within 0.2 s" in ended.stderr
    assert "does not answer like a backend" not in ended.stderr
    assert "does not speak TLS" not in ended.stderr


def test_a_backend_that_answers_by_then_is_taken_for_one(address: str, encrypted: str, authority_file: str) -> None:
    assert why_silent(address, None) == ""
    tls = TLSConfig(root_certificates=Path(authority_file).read_bytes())
    assert why_silent(encrypted, tls) == ""


def test_who_closes_connections_is_not_called_a_wrong_protocol() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        closing = threading.Thread(target=_close_all, args=(server,), daemon=True)
        closing.start()
        assert "closes the connection without an answer" in why_silent(address, None)
        server.shutdown(socket.SHUT_RDWR)
    closing.join(30)


def _close_all(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        ended = ask(address)
        server.shutdown(socket.SHUT_RDWR)
    answering.join(30)
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert f"Something listens at {address}, but it does not answer like a backend" in ended.stderr
