import pytest
from pydantic import ValidationError

from unerase_backend.coordinator.settings import CoordinatorSettings


def test_another_machine_is_let_in_only_on_purpose() -> None:
    with pytest.raises(ValidationError, match="allow_insecure_bind"):
        CoordinatorSettings(artifacts="a", state="s", host="0.0.0.0")
    assert CoordinatorSettings(artifacts="a", state="s", host="0.0.0.0", allow_insecure_bind=True).host == "0.0.0.0"
    assert CoordinatorSettings(artifacts="a", state="s", host="::1").host == "::1"


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ValidationError, match="prot"):
        CoordinatorSettings.model_validate({"artifacts": "a", "state": "s", "prot": 1})
