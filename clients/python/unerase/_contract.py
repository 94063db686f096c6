"""The version of the contract that this client knows, and the warning about a newer one; without I/O."""

import warnings

from unerase._contract_number import CONTRACT
from unerase.v1.server_pb2 import ServerInfo

ASK_SECONDS = 5.0
"""How long a client waits for what the backend is, after a call that created something."""


class NewerContractWarning(UserWarning):
    """The backend knows a newer contract: it may say what this client does not show."""


def warn_if_newer(info: ServerInfo) -> None:
    """Warn about a backend that knows a newer contract."""
    if info.contract > CONTRACT:
        warnings.warn(
            f"the backend (unerase {info.version}) knows contract {info.contract} and this client {CONTRACT}: it may "
            "say what this client does not show; install the backend's version of unerase",
            NewerContractWarning,
            stacklevel=4,
        )
