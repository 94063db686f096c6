"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 2
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "f9b8b9c7f8a0aabcc0ae978bc9cd1e057ceae952406f69a34b0f2f0d83a9dc40"
"""Of the contract with this number, as `tools/contract.py` takes it."""
