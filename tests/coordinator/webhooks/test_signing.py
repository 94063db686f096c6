"""Signatures of webhooks, and the file of secrets."""

import base64
import json
from pathlib import Path

import pytest

from unerase_backend.coordinator.webhooks.signing import Secrets, key_of, signed_headers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjSw"
OTHER = "whsec_" + base64.b64encode(b"k" * 32).decode()


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The value is what the package `standardwebhooks` 1.1.0 makes of the same."""
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [SECRET])
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,q6KMVIJHk4Gs770FfR5f591Ftx7uVJSGl5wHV1ri978=",
    }


def test_two_secrets_make_two_signatures() -> None:
    both = signed_headers("m", 1, b"{}", [SECRET, OTHER])["webhook-signature"].split()
    assert both == [signed_headers("m", 1, b"{}", [each])["webhook-signature"] for each in (SECRET, OTHER)]


@pytest.mark.parametrize("other", [("n", 1, b"{}"), ("m", 2, b"{}"), ("m", 1, b"{ }")])
def test_everything_is_signed(other: tuple[str, int, bytes]) -> None:
    signature = "webhook-signature"
    assert signed_headers(*other, [SECRET])[signature] != signed_headers("m", 1, b"{}", [SECRET])[signature]


def test_a_tenant_has_its_own_secrets_or_everybodys(tmp_path: Path) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"secrets": {"acme": [SECRET, OTHER]}}))
    secrets = Secrets(file)
    assert secrets.of("acme") == (SECRET, OTHER)
    assert secrets.of("rival") == ()
    # Read again, without a restart.
    file.write_text(json.dumps({"secrets": {"acme": [OTHER], "*": [SECRET]}}))
    assert (secrets.of("acme"), secrets.of("rival"), secrets.of("")) == ((OTHER,), (SECRET,), (SECRET,))
    assert Secrets(None).of("acme") == ()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"secrets": {"acme": []}}',
        json.dumps({"secrets": {"ACME": [SECRET]}}),
        '{"secrets": {"acme": ["whsec_short"]}}',
        json.dumps({"secrets": {"acme": [f"secret-{SECRET}"]}}),
        json.dumps({"secrets": {"acme": [f"whsec_!!!!{SECRET[6:]}"]}}),
        json.dumps({"secrets": {"acme": [SECRET]}, "more": 1}),
    ],
)
def test_a_file_that_is_none_is_refused_without_showing_a_secret(tmp_path: Path, content: str) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"secrets.json: ") as refused:
        Secrets(file)
    assert SECRET[6:] not in str(refused.value)
    assert "Value error" not in str(refused.value)


def test_a_key_has_at_least_24_bytes() -> None:
    assert len(key_of(SECRET)) == 24
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        key_of("whsec_" + base64.b64encode(b"x" * 23).decode())
