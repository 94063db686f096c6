"""URLs and hosts of webhooks: what is allowed, and that every parser reads an allowed one alike."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from unerase_backend.coordinator.webhooks.hosts import MAX_URL, Hosts, Target, entry_of

HOSTS = Hosts(
    ["hooks.example.com", "*.acme.example", "other.example:8443", "93.184.216.34"],
    ["inside.example", "localhost:8080", "127.0.0.1:9000", "[::1]:9000"],
)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (
            "https://hooks.example.com/a?b=c%20d",
            Target("https://hooks.example.com:443/a?b=c%20d", "hooks.example.com", 443, False),
        ),
        ("HTTPS://Hooks.Example.COM", Target("https://hooks.example.com:443/", "hooks.example.com", 443, False)),
        ("https://hooks.example.com:443/", Target("https://hooks.example.com:443/", "hooks.example.com", 443, False)),
        ("https://a.b.acme.example/@x@/", Target("https://a.b.acme.example:443/@x@/", "a.b.acme.example", 443, False)),
        ("https://other.example:8443/", Target("https://other.example:8443/", "other.example", 8443, False)),
        ("https://93.184.216.34/", Target("https://93.184.216.34:443/", "93.184.216.34", 443, False)),
        ("http://inside.example/x", Target("http://inside.example:80/x", "inside.example", 80, True)),
        ("https://inside.example/x", Target("https://inside.example:443/x", "inside.example", 443, True)),
        ("http://localhost:8080/", Target("http://localhost:8080/", "localhost", 8080, True)),
        ("http://[::1]:9000/", Target("http://[::1]:9000/", "::1", 9000, True)),
    ],
)  # fmt: skip
def test_allowed_hosts_are_targets(url: str, target: Target) -> None:
    assert HOSTS.target(url) == target


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://hooks.example.com/", "must begin with https://"),
        ("http://hooks.example.com:443/", "must begin with https://"),
        ("https://hooks.example.com:22/", "port 22"),
        ("https://acme.example/", "does not allow"),
        ("https://acme.example.evil.example/", "does not allow"),
        ("https://evilacme.example/", "does not allow"),
        ("https://hooks.example.com.evil.example/", "does not allow"),
        ("https://hooks.example.com./", "does not allow"),
        ("https://other.example/", "does not allow"),
        ("https://inside.example:8443/", "does not allow"),
        ("https://hooks.example.com@evil.example/", "must be a URL"),
        ("https://hooks.example.com:x@evil.example/", "must be a URL"),
        ("https://evil.example\\@hooks.example.com/", "must be a URL"),
        ("https://hooks.example.com\\.evil.example/", "must be a URL"),
        ("https://hooks.example.com#@evil.example/", "must be a URL"),
        ("https://hooks.example.com?@evil.example/", "must be a URL"),
        ("https:///hooks.example.com/", "must be a URL"),
        ("//hooks.example.com/", "must be a URL"),
        ("hooks.example.com", "must be a URL"),
        ("ftp://hooks.example.com/", "must be a URL"),
        ("https://hooks.example.com/a b", "must be a URL"),
        ("https://hooks.example.com/\r\nHost: x", "must be a URL"),
        ("https://hooks.example.com/\n", "must be a URL"),
        (" https://hooks.example.com/", "must be a URL"),
        ("https://höoks.example.com/", "must be a URL"),
        ("https://hooks。example。com/", "must be a URL"),
        ("https://hooks.example.com:0/", "port from 1 to 65535"),
        ("https://hooks.example.com:65536/", "port from 1 to 65535"),
        ("https://127.0.0.1/", "does not allow"),
        ("https://[::ffff:127.0.0.1]/", "does not allow"),
        ("https://hooks.example.com/" + "x" * MAX_URL, f"at most {MAX_URL}"),
    ],
)
def test_all_others_are_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HOSTS.target(url)


@pytest.mark.parametrize(
    "url", ["https://evil.example/s3cret", "http://hooks.example.com/s3cret", "https://x y/s3cret"]
)
def test_an_error_does_not_show_the_path(url: str) -> None:
    """It can hold a secret, and errors are logged."""
    with pytest.raises(ValueError, match=r"must|does not") as refused:
        HOSTS.target(url)
    assert "s3cret" not in str(refused.value)


def test_an_address_is_public_unless_its_host_is_internal() -> None:
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[fd00::1]", "[::ffff:10.0.0.1]"):
        with pytest.raises(ValueError, match="address"):
            Hosts([address]).target(f"https://{address}/")
        assert Hosts([], [address]).target(f"http://{address}/").internal


def test_without_hosts_nothing_is_allowed() -> None:
    with pytest.raises(ValueError, match="does not allow"):
        Hosts().target("https://hooks.example.com/")


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "https://x.example", "x.example/", "x y", "x.example:0", "x:99999", "-x", "a.*.b"]
)
def test_an_entry_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="must be a host"):
        entry_of(entry)


def test_an_internal_host_is_named_in_full() -> None:
    with pytest.raises(ValueError, match="named in full"):
        entry_of("*.inside.example", internal=True)


PIECES = st.sampled_from(
    ["https://", "http://", "hooks.example.com", "evil.example", *"/:@\\?#.%[] \t\n", "%2f", "443", "é"]
)


@given(
    st.one_of(
        st.lists(PIECES, max_size=10).map("".join),
        st.lists(PIECES, max_size=8).map(lambda more: "https://hooks.example.com" + "".join(more)),
    )
)
def test_every_parser_reads_an_allowed_url_alike(url: str) -> None:
    try:
        target = HOSTS.target(url)
    except ValueError:
        return
    for parsed in (URL(target.url, encoded=True), urlsplit(target.url), URL(url, encoded=True)):
        host = parsed.host if isinstance(parsed, URL) else parsed.hostname
        assert host is not None
        assert host.lower() == target.host == "hooks.example.com"
        assert parsed.port in (target.port, None)
