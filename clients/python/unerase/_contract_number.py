"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 3
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "08288ed34b4640c344d206d1e0e6c85cd0a6e721ab9d72bde2281a8d7096b27d"
"""Of the contract with this number, as `tools/contract.py` takes it."""
