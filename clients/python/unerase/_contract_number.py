"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 4
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "53e348f0b9f78ccc53ce831b426780af8c397948923a35b91d3890fff8c090e6"
"""Of the contract with this number, as `tools/contract.py` takes it."""
