"""Where the backend is, if nobody says so."""

import os

from unerase._settings import DEFAULT_ADDRESS


def address_of(address: str | None) -> str:
    """Return the address of the backend: as given, or UNERASE_ADDRESS, or this machine's."""
    return address or os.environ.get("UNERASE_ADDRESS") or DEFAULT_ADDRESS
