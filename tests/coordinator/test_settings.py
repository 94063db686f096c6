import pytest
from pydantic import ValidationError

from unerase_backend.coordinator.settings import CoordinatorSettings


def test_another_machine_is_let_in_only_on_purpose() -> None:
    with pytest.raises(ValidationError, match="allow_insecure_bind"):
        CoordinatorSettings(artifacts="a", state="s", host="0.0.0.0")
    assert CoordinatorSettings(artifacts="a", state="s", host="0.0.0.0", allow_insecure_bind=True).host == "0.0.0.0"
    assert CoordinatorSettings(artifacts="a", state="s", host="::1").host == "::1"


def test_with_tls_and_tokens_another_machine_may_come() -> None:
    given = {"artifacts": "a", "state": "s", "host": "0.0.0.0"}
    tls = {"tls_certificate": "c", "tls_key": "k"}
    assert CoordinatorSettings(**given, **tls, tokens="t").host == "0.0.0.0"
    with pytest.raises(ValidationError, match="no tokens"):
        CoordinatorSettings(**given, **tls)
    with pytest.raises(ValidationError, match="no TLS;"):
        CoordinatorSettings(**given, tokens="t")


@pytest.mark.parametrize("half", [{"tls_certificate": "c"}, {"tls_key": "k"}, {"tls_client_ca": "a"}])
def test_half_of_tls_is_refused(half: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="tls_"):
        CoordinatorSettings(artifacts="a", state="s", **half)


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ValidationError, match="prot"):
        CoordinatorSettings.model_validate({"artifacts": "a", "state": "s", "prot": 1})


def test_a_bad_setting_does_not_tell_the_others() -> None:
    given = {"artifacts": "a", "state": "s", "database_url": "postgresql://unerase:hunter2@db/unerase"}
    for bad in ({"host": "0.0.0.0"}, {"concurrent_units": 0}, {"prot": 1}):
        with pytest.raises(ValidationError) as refused:
            CoordinatorSettings.model_validate({**given, **bad})
        assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(CoordinatorSettings.model_validate(given))


@pytest.mark.parametrize("url", ["postgresql://unerase:hunter2", "postgresql://u:hunter2@db:54x/a", "hunter2"])
def test_a_database_that_is_no_url_is_refused_without_being_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDITS_URL", url)
    for given in ({"database_url": url}, {"database_url_variable": "AUDITS_URL"}):
        with pytest.raises(ValueError, match="is not a URL") as refused:
            CoordinatorSettings(artifacts="a", state="s", **given).database()
        assert "hunter2" not in str(refused.value)


def test_the_database_comes_from_the_environment_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CoordinatorSettings(artifacts="a", state="s", database_url_variable="AUDITS_URL")
    monkeypatch.delenv("AUDITS_URL", raising=False)
    with pytest.raises(ValueError, match=r"AUDITS_URL, .* is not set in the environment"):
        settings.database()
    monkeypatch.setenv("AUDITS_URL", "postgresql://db/unerase")
    assert settings.database() == "postgresql://db/unerase"
    assert CoordinatorSettings(artifacts="a", state="s").database() == ""
    with pytest.raises(ValidationError, match="set only one of them"):
        CoordinatorSettings(
            artifacts="a", state="s", database_url="postgresql://db/x", database_url_variable="AUDITS_URL"
        )


def test_webhooks_are_signed_and_go_to_hosts() -> None:
    given = {"artifacts": "a", "state": "s"}
    signed = {**given, "webhook_secrets": "secrets.json"}
    settings = CoordinatorSettings(
        **signed, webhook_hosts=["*.example.com"], webhook_internal_hosts=["ci.internal:8080"]
    )
    assert settings.webhook_targets().target("http://ci.internal:8080/x").internal
    assert not settings.webhook_targets().target("https://hooks.example.com/x").internal
    assert not CoordinatorSettings(**given).webhook_targets().names
    for hosts in ({"webhook_hosts": ["x.example"]}, {"webhook_internal_hosts": ["x.example"]}):
        with pytest.raises(ValidationError, match="needs webhook_secrets"):
            CoordinatorSettings(**given, **hosts)
    with pytest.raises(ValidationError, match=r"webhook_hosts.*\n.*must be a host"):
        CoordinatorSettings(**signed, webhook_hosts=["https://x.example/"])
    with pytest.raises(ValidationError, match=r"webhook_internal_hosts.*\n.*named in full"):
        CoordinatorSettings(**signed, webhook_internal_hosts=["*.example.com"])
