"""Whoever is not a trusted proxy has the address that the connection comes from, whatever its headers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security.http.clients import FORWARDED_FOR, FORWARDED_PROTO, Client, TrustedProxies

DEFAULT = ["127.0.0.0/8", "::1"]

items = st.one_of(
    st.binary(max_size=40),
    st.ip_addresses().map(lambda ip: str(ip).encode()),
    st.sampled_from([b"127.0.0.1", b"::1", b"https", b"unix", b"127.0.0.1, 127.0.0.1", b"", b" , ,", b"[::1]:80"]),
)


def client(
    peer: str | None,
    *,
    port: int = 1,
    trusted: list[str] = DEFAULT,
    scheme: str = "http",
    proto: object = None,
    forwarded: object = None,
) -> Client:
    headers = {
        name: [value] if isinstance(value, bytes) else value
        for name, value in ((FORWARDED_PROTO, proto), (FORWARDED_FOR, forwarded))
        if value is not None
    }
    scope = {"client": None if peer is None else (peer, port), "scheme": scheme}
    return TrustedProxies(trusted).client(scope, headers)  # type: ignore[arg-type]


@given(
    st.ip_addresses().filter(lambda ip: not ip.is_loopback and getattr(ip, "ipv4_mapped", None) is None),
    st.lists(items, max_size=4),
    st.lists(items, max_size=4),
)
def test_headers_of_a_stranger_change_nothing(peer: object, forwarded: list[bytes], proto: list[bytes]) -> None:
    assert client(str(peer), forwarded=forwarded, proto=proto) == Client(str(peer), secure=False)


@given(st.ip_addresses(v=4).filter(lambda ip: not ip.is_loopback), st.lists(items, max_size=4))
def test_what_stands_left_of_the_first_stranger_changes_nothing(real: object, invented: list[bytes]) -> None:
    forwarded = [*invented, str(real).encode()]
    assert client("127.0.0.1", forwarded=forwarded).address == str(real)
    assert client("127.0.0.1", forwarded=b", ".join(forwarded)).address == str(real)


@given(st.lists(items, max_size=6))
def test_no_header_of_a_trusted_proxy_raises_and_the_address_is_an_address(forwarded: list[bytes]) -> None:
    found = client("127.0.0.1", forwarded=forwarded)
    assert found.address.isascii()
    assert found.network


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (b"198.51.100.7", "198.51.100.7"),
        (b"198.51.100.7:4711", "198.51.100.7"),
        (b"[2001:db8::7]:4711", "2001:db8::7"),
        (b"2001:DB8:0::7", "2001:db8::7"),
        (b"::ffff:198.51.100.7", "198.51.100.7"),
        (b"198.51.100.7, 127.0.0.2", "198.51.100.7"),
        (b"1.2.3.4, 198.51.100.7, 127.0.0.2", "198.51.100.7"),
        (b"1.2.3.4, nonsense, 127.0.0.2", "127.0.0.2"),
        (b"nonsense", "127.0.0.1"),
        (b"", "127.0.0.1"),
        (b"unix", "127.0.0.1"),
        (b"fe80::1%eth0", "127.0.0.1"),
        (b"010.0.0.1", "127.0.0.1"),
        (b"\xb9.2.3.4", "127.0.0.1"),
        (b"1" * 100_000, "127.0.0.1"),
    ],
)
def test_the_list_is_read_from_the_right(forwarded: bytes, address: str) -> None:
    assert client("127.0.0.1", forwarded=forwarded).address == address


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    ("proto", "secure"),
    [
        (b"https", True),
        (b"HTTPS", True),
        (b"wss", True),
        (b"http", False),
        (b"https, http", False),
        ([b"https", b"http"], False),
        (b"http, https", True),
        (b"", False),
        (b"httpsx", False),
        (b"\xff", False),
        (None, False),
    ],
)
def test_the_last_proxy_says_whether_the_connection_is_secure(peer: str, proto: object, secure: bool) -> None:
    assert client(peer, proto=proto).secure is secure


def test_a_secure_connection_of_a_proxy_can_carry_a_plain_one() -> None:
    assert not client("127.0.0.1", scheme="https", proto=b"http").secure


@pytest.mark.parametrize(("trusted", "address"), [(["unix"], "198.51.100.7"), (DEFAULT, "unix"), ([], "unix")])
def test_a_unix_socket_is_trusted_only_where_it_is_listed(trusted: list[str], address: str) -> None:
    assert client(None, trusted=trusted, forwarded=b"198.51.100.7").address == address


ELSEWHERE = ["10.0.0.1", "unix"]
"""Proxies, none of which is on the loopback address, whose headers uvicorn believes by default."""


@pytest.mark.parametrize(
    ("peer", "port", "forwarded"),
    [
        ("5.5.5.5", 0, b"5.5.5.5"),
        ("5.5.5.5", 4711, b"5.5.5.5:4711"),
        ("2001:db8::5", 4711, b"[2001:DB8::5]:4711"),
        ("2001:db8::5%a", 4711, b"[2001:db8::5%a]:4711"),
        ("nonsense", 0, b"nonsense"),
        ("10.0.0.1", 4711, b"10.0.0.1:4711"),
        ("10.0.0.1", 4711, b"10.0.0.1:4711, 5.5.5.5"),
        ("unix", 0, b"unix"),
    ],
)
def test_an_address_that_the_server_took_from_a_header_is_nobodys(peer: str, port: int, forwarded: bytes) -> None:
    found = client(peer, port=port, trusted=ELSEWHERE, scheme="https", proto=b"https", forwarded=forwarded)
    assert found == Client("unknown", secure=False)


@pytest.mark.parametrize("trusted", [[], ELSEWHERE, ["::1"]])
@pytest.mark.parametrize("peer", ["127.0.0.1", "198.51.100.7"])
def test_a_scheme_that_the_server_may_have_taken_from_a_header_is_not_believed(peer: str, trusted: list[str]) -> None:
    assert client(peer, trusted=trusted, scheme="https", proto=b"https") == Client(peer, secure=False)


def test_without_such_headers_the_server_is_believed_and_so_is_a_proxy_of_the_settings() -> None:
    assert client("198.51.100.7", trusted=[], scheme="https") == Client("198.51.100.7", secure=True)
    found = client("10.0.0.1", trusted=ELSEWHERE, proto=b"https", forwarded=b"198.51.100.7")
    assert found == Client("198.51.100.7", secure=True)


def test_what_to_do_about_a_server_that_reads_such_headers_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    proxies = TrustedProxies(ELSEWHERE)
    for _ in range(3):
        proxies.client({"client": ("5.5.5.5", 0), "scheme": "https"}, {FORWARDED_FOR: [b"5.5.5.5"]})
    assert caplog.text.count("--no-proxy-headers") == 1


def test_a_server_that_calls_its_peer_unix_is_not_believed_by_default() -> None:
    assert client("unix", proto=b"https") == Client("unix", secure=False)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        ("testclient", "testclient"),
    ],
)
def test_an_ipv6_client_is_counted_by_its_network(address: str, network: str) -> None:
    assert Client(address, secure=True).network == network
