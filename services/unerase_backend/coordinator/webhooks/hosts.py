"""Which URLs a webhook may have: those of hosts that the operator allows, by https unless the host is internal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unerase_backend.coordinator.webhooks.addresses import problem_of

MAX_URL = 2000
_PORTS = {"https": 443, "http": 80}
# One form that all parsers read alike: no user, no fragment, no backslash, nothing beyond ASCII.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[a-z0-9._~:/?@!$&'()*+,;=%-]*)?",
    re.IGNORECASE,
)
_ENTRY = re.compile(
    r"(?P<host>(?:\*\.)?[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True)
class Target:
    """Where a webhook goes."""

    url: str
    host: str
    """In lower case; an address of IPv6 without its brackets."""
    port: int
    internal: bool
    """The operator named the host as an internal one: its address may be private."""


@dataclass(frozen=True)
class _Entry:
    host: str
    port: int
    """0 stands for the scheme's own."""

    def fits(self, host: str, port: int, scheme: str) -> bool:
        named = host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host
        return named and port == (self.port or _PORTS[scheme])


class Hosts:
    """The hosts that the operator allows."""

    def __init__(self, hosts: Sequence[str] = (), internal: Sequence[str] = ()) -> None:
        """Take entries as `hooks.example.com`, `*.example.com` or `hooks.example.com:8443`; internal ones have no `*`.

        Raises:
            ValueError: an entry is none of these.
        """
        self.names = tuple(dict.fromkeys((*hosts, *internal)))
        self._hosts = tuple(entry_of(each) for each in hosts)
        self._internal = tuple(entry_of(each, internal=True) for each in internal)

    def target(self, url: str) -> Target:
        """Return where a webhook with this URL goes.

        Raises:
            ValueError: it is not a URL of an allowed host; says why, without the URL.
        """
        if len(url) > MAX_URL:
            raise ValueError(f"must be at most {MAX_URL} characters, not {len(url)}")
        matched = _URL.fullmatch(url)
        if matched is None:
            raise ValueError("must be a URL such as https://hooks.example.com/audits, without user and fragment")
        scheme, host = matched["scheme"].lower(), matched["host"].lower()
        port = int(matched["port"] or _PORTS[scheme])
        if not 0 < port < 65536:
            raise ValueError("must have a port from 1 to 65535")
        internal = any(each.fits(host, port, scheme) for each in self._internal)
        if scheme == "http" and not internal:
            raise ValueError("must begin with https://, unless the operator names the host as an internal one")
        if not internal and not any(each.fits(host, port, scheme) for each in self._hosts):
            raise ValueError(f"the operator does not allow the host {host}, port {port}")
        bare = host.strip("[]")
        if not internal and (":" in bare or re.fullmatch(r"[0-9.]+", bare)) and (problem := problem_of(bare)):
            raise ValueError(f"the address {bare} {problem}")
        rebuilt = f"{scheme}://{host}:{port}{matched['path'] or '/'}"
        return Target(rebuilt, bare, port, internal)


def entry_of(entry: str, *, internal: bool = False) -> _Entry:
    """Return an entry of the operator's list.

    Raises:
        ValueError: it is none.
    """
    matched = _ENTRY.fullmatch(entry.lower())
    if matched is None or (matched["port"] is not None and not 0 < int(matched["port"]) < 65536):
        raise ValueError(f"{entry!r} must be a host such as hooks.example.com, *.example.com or hooks.example.com:8443")
    if internal and matched["host"].startswith("*."):
        raise ValueError(f"{entry!r}: an internal host is named in full")
    return _Entry(matched["host"], int(matched["port"] or 0))
