"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 5
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "ade4c7076b9ac4348be08603a1e6ddba0d5ee8097cd14a31f3a865cc896af93f"
"""Of the contract with this number, as `tools/contract.py` takes it."""
