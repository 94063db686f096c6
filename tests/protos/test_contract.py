"""The contract's number grows with the contract: clients tell a newer backend by it."""

import pytest

from tools import contract
from unerase import _contract_number


def test_the_number_is_that_of_the_contract() -> None:
    """If this fails the contracts have changed: `make protos` raises the number."""
    assert contract.digest_of(contract.elements()) == _contract_number.DIGEST, "run `make protos`"


def test_every_change_raises_the_number() -> None:
    text = contract.FILE.read_text()
    lines = contract.elements()
    assert contract.raised(text, _contract_number.DIGEST) == text
    for other in (lines[1:], [*lines, "unerase.v1.Audit.more 99 string 00"]):
        digest = contract.digest_of(other)
        grown = contract.raised(text, digest)
        assert f"CONTRACT = {_contract_number.CONTRACT + 1}\n" in grown
        assert f'DIGEST = "{digest}"\n' in grown
        # Once only.
        assert contract.raised(grown, digest) == grown


@pytest.mark.parametrize(
    "line",
    [
        "unerase.v1.ServerService.GetServerInfo unerase.v1.GetServerInfoRequest unerase.v1.ServerInfo 00",
        "unerase.v1.ServerInfo.contract 2 13 00",
        "unerase.v1.AuditState AUDIT_STATE_FAILED 4",
        "unerase.v1.ServerInfo.LimitsEntry.value 2 4 00",
        "unerase.v1.AuditService.WatchAudit unerase.v1.WatchAuditRequest unerase.v1.AuditEvent 01",
    ],
)
def test_fields_values_and_methods_count(line: str) -> None:
    assert line in contract.elements()
