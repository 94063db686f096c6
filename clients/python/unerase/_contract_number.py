"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 8
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "1db502f0f208a197ee158c3230516b87a66e95546b3e2dd94c4c815c34b1e482"
"""Of the contract with this number, as `tools/contract.py` takes it."""
