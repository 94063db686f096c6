"""The number of the public contract, `unerase.v1`; `make protos` raises it when the contract changes."""

CONTRACT = 7
"""It grows with every field, method or value that is added; 1 is that of release 0.1.0."""

DIGEST = "5638a211fd3574acd97d0656d11e3b720e77ccba641ab9e45ecc1ad826bc0548"
"""Of the contract with this number, as `tools/contract.py` takes it."""
