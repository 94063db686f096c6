"""/metrics over HTTP, encrypted like the RPCs; if the backend has tokens, a caller needs one with scope `metrics`."""

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from unerase_backend.coordinator.api.scopes import METRICS
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.encryption import Certificates
from unerase_backend.runtime.errors import ForbiddenError, UnauthenticatedError

_logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""The most open connections of /metrics; each takes a thread."""


def serve_metrics(
    metrics: Metrics, gate: Gate, host: str, port: int, certificates: Certificates | None
) -> Callable[[], None]:
    """Serve /metrics in a thread, and return a function that stops it.

    Raises:
        OSError: the address cannot be bound.
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
            return [b"use /metrics\n"]
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
    """A server with a thread for each connection; beyond `MAX_CONNECTIONS` the oldest connection is ended."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection."""
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= MAX_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
                with suppress(OSError):
                    # Its thread then reads the end of the stream, and ends.
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, except for errors of the connection, such as a caller that disconnects or does not use TLS."""
        if not isinstance(sys.exception(), OSError):
            _logger.exception("a request for /metrics failed")


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10
    """Seconds in which a caller must send its request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def _stop(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
