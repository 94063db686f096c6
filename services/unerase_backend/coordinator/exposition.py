"""/metrics over HTTP: for callers with a token of scope `metrics` where there are tokens, encrypted as the RPCs are."""

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.scopes import METRICS
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.encryption import Certificates
from unerase_backend.runtime.errors import ForbiddenError, UnauthenticatedError


def serve_metrics(
    metrics: Metrics, gate: Gate, host: str, port: int, certificates: Certificates | None
) -> Callable[[], None]:
    """Serve /metrics in a thread; returns what stops it.

    Raises:
        OSError: the address is not to be had.
    """
    exposition = make_wsgi_app(metrics.registry)

    def application(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            gate.admit(environment.get("HTTP_AUTHORIZATION")).require(METRICS)
        except (UnauthenticatedError, ForbiddenError) as error:
            status = "401 Unauthorized" if isinstance(error, UnauthenticatedError) else "403 Forbidden"
            headers = [("Content-Type", "text/plain; charset=utf-8"), ("WWW-Authenticate", "Bearer")]
            start(status, headers)
            return [f"{error.message}\n".encode()]
        if environment.get("PATH_INFO") != "/metrics":
            start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"there is /metrics\n"]
        content: Iterable[bytes] = exposition(environment, start)
        return content

    server = make_server(
        host, port, application, server_class=_IPv6Server if ":" in host else _Server, handler_class=_Handler
    )
    if certificates is not None:
        server.socket = certificates.context().wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return lambda: _stop(server, thread)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10
    """Seconds that a caller has to say what it wants."""

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def _stop(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
