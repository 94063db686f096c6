"""A connection to a backend, and how calls are made over it."""

# grpc's classes are generic for type checkers only.
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from unerase._contract import ASK_SECONDS, warn_if_newer
from unerase._environment import address_of, settings_from_environment
from unerase._errors import UneraseError, error_of
from unerase._interrupting import interruptible
from unerase._repeating import Attempts
from unerase._settings import ClientSettings, call_metadata, channel_options, trace_metadata
from unerase._transfers import Page, Piece, joined, next_page
from unerase._watching import Event, Watching, closed
from unerase.v1.server_pb2 import GetServerInfoRequest, ServerInfo
from unerase.v1.server_pb2_grpc import ServerServiceStub

Request = TypeVar("Request")
Paged = TypeVar("Paged", bound=Message)
Response = TypeVar("Response")


class Connection:
    """A connection that is opened by the first call; safe to share between threads."""

    def __init__(self, address: str | None = None, *, settings: ClientSettings | None = None) -> None:
        """Prepare a connection to HOST:PORT; what is not given comes from the environment, as for the command.

        Without an address, UNERASE_ADDRESS counts, and then `DEFAULT_ADDRESS`. Without settings, the token and the
        certificates are those of UNERASE_TOKEN, UNERASE_TLS_CA and the other variables (docs/operations.md).

        Raises:
            ValueError: variables contradict each other, or a token would be sent unencrypted to another machine.
            OSError: a file that a variable names cannot be read.
        """
        self._address = address_of(address)
        self._settings = settings_from_environment(traced=False) if settings is None else settings
        self._token = call_metadata(self._address, self._settings)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._contract_known = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Return what the backend is: version, contract, evaluations, limits, features and its time.

        Warns (`NewerContractWarning`) once if the backend knows a newer contract than this client. The first call that
        creates something asks as well, for the sake of this warning alone.
        """
        info = self._ask(ServerServiceStub(self._open()).GetServerInfo, GetServerInfoRequest(), timeout)
        if not self._contract_known:
            self._contract_known = True
            warn_if_newer(info)
        return info

    def _check_contract(self) -> None:
        """Warn about a newer contract, once; a backend that does not say its own is an older one."""
        if self._contract_known:
            return
        self._contract_known = True
        try:
            call = ServerServiceStub(self._open()).GetServerInfo
            info = interruptible(lambda: call(GetServerInfoRequest(), timeout=ASK_SECONDS, metadata=self._metadata()))
        except (grpc.RpcError, ValueError):
            # ValueError: the caller closed the client meanwhile.
            return
        warn_if_newer(info)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (*self._token, *trace_metadata(self._settings))

    def _ask(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        *,
        safe: bool = True,
        creates: bool = False,
    ) -> Response:
        attempts = Attempts(self._settings, timeout, safe=safe, creates=creates)
        return self._repeated(attempts, lambda limit: method(request, timeout=limit, metadata=self._metadata()))

    def _pages(
        self,
        method: Callable[[], grpc.UnaryUnaryMultiCallable[Paged, Page]],
        request: Paged,
        timeout: float | None,
    ) -> Iterator[Page]:
        """Yield the pages of a list; each may take the timeout."""
        following: Paged | None = request
        while following is not None:
            page = self._ask(method(), following, timeout)
            yield page
            following = next_page(following, page)

    def _fetch(
        self, method: grpc.UnaryStreamMultiCallable[Request, Piece], request: Request, timeout: float | None
    ) -> bytes:
        return joined(self._all(method, request, timeout))

    def _all(
        self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request, timeout: float | None
    ) -> list[Response]:
        """Return every message of a stream, which is asked for again from its beginning if it breaks."""

        def pieces(limit: float) -> list[Response]:
            return list(method(request, timeout=limit, metadata=self._metadata()))

        attempts = Attempts(self._settings, timeout, seconds=self._settings.transfer_timeout_seconds)
        return self._repeated(attempts, pieces)

    def _repeated(self, attempts: Attempts, call: Callable[[float], Response], *, in_place: bool = False) -> Response:
        """Return the answer of a call, which gets the seconds it may take; repeat it where that is safe.

        A call that is interruptible itself is made `in_place`, by this thread.
        """
        channel = self._open()
        while True:
            try:
                limit = attempts.remaining()
                return call(limit) if in_place else interruptible(lambda: call(limit))  # noqa: B023
            except grpc.RpcError as error:
                failure = error_of(error)
            self._wait(attempts.delay(failure), channel, failure)

    def _watched(
        self,
        watching: Watching[Event],
        call: Callable[[float | None], grpc._CallIterator[Event]],
        is_ended: Callable[[float], bool],
    ) -> Iterator[Event]:
        """Yield events, each once and in order, over as many connections as it takes.

        `call` begins a connection that may take so many seconds, and `is_ended` asks for the state.
        """
        channel = self._open()
        while True:
            failure: UneraseError | None = None
            try:
                seconds = watching.begin()
                events = interruptible(lambda: call(seconds))  # noqa: B023
                try:
                    while (event := interruptible(lambda: next(events, None))) is not None:  # noqa: B023
                        if watching.accept(event):
                            yield event
                finally:
                    events.cancel()
                # A stream that begins after the last event is empty: only the state itself says that it has ended.
                if watching.ended:
                    return
                if watching.idle and is_ended(watching.asking()):
                    return
            except grpc.RpcError as error:
                failure = error_of(error)
            except UneraseError as error:
                failure = error
            self._wait(watching.delay(failure), channel, failure)

    def _wait(self, seconds: float, channel: grpc.Channel, failure: UneraseError | None = None) -> None:
        """Wait before the next call; stop, with the failure, if the caller closed the client meanwhile."""
        if self._channel is channel:
            time.sleep(seconds)
        if self._channel is not channel:
            raise failure or closed()

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                options = channel_options(self._address, self._settings)
                tls = self._settings.tls
                if tls is None:
                    self._channel = grpc.insecure_channel(self._address, options=options)
                else:
                    credentials = grpc.ssl_channel_credentials(
                        tls.root_certificates, tls.client_key, tls.client_certificate
                    )
                    self._channel = grpc.secure_channel(self._address, credentials, options=options)
            return self._channel
