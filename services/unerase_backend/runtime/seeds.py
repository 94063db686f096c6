"""Derives every seed of an audit from its seed base.

A seed is the first 63 bits of SHA-256 over the base and the names of its purpose. It does not depend on the order of
the work or on the worker, and two purposes never share a seed.
"""

import hashlib


def derive_seed(base: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) for the purpose that `names` spell out, as in `derive_seed(base, "latent", case)`."""
    text = "\x1f".join([str(base), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
