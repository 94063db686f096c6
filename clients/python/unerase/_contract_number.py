"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 6
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "c34d249055c5dfa11565145c277a48cb43f726b88a8e4812088b2134a9f82f17"
"""Of the contract with this number, as `tools/contract.py` takes it."""
