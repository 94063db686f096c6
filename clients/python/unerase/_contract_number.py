"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 9
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "33c0971b4ab7bd4f314f672d3a97654cee2d7e7bf273a0c7ec8f6e1ca372fa3b"
"""Of the contract with this number, as `tools/contract.py` takes it."""
