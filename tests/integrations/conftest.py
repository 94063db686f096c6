"""What `make integrations` installs must be there when these tests are asked for: nothing is skipped silently then."""

from importlib.util import find_spec

import pytest

PACKAGES = (
    *("every_eval_ever", "in_toto", "in_toto_attestation", "inspect_ai", "jsonschema", "mlflow"),
    *("nudenet", "peft", "pyrit", "securesystemslib"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run without a package; elsewhere these tests are not selected, and their modules skip themselves."""
    if config.option.markexpr != "integrations":
        return
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise pytest.UsageError(f"not installed: {', '.join(missing)}; run `make integrations`")
