"""One credential, in one header: anything else is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AuthenticationError
from taskiq_flow_security.http.credentials import API_KEY, AUTHORIZATION, Credentials, find_credentials, from_text
from tests.edge import token


def reason_of(headers: dict[bytes, list[bytes]], query: bytes = b"") -> str:
    with pytest.raises(AuthenticationError) as refusal:
        find_credentials(headers, query)
    return refusal.value.reason


def test_no_header_and_an_empty_key_are_no_credential() -> None:
    assert find_credentials({}, b"page=2") is None
    assert find_credentials({API_KEY: [b""]}, b"") is None


def test_an_api_key_is_taken_as_it_is_but_for_space_that_a_server_has_left_at_its_end() -> None:
    assert find_credentials({API_KEY: [b" a key \t "]}, b"") == Credentials(api_key=" a key")
    assert find_credentials({API_KEY: [b" \t"]}, b"") is None


@pytest.mark.parametrize("value", [b"Bearer abc", b"bearer abc", b"BEARER  abc "])
def test_a_bearer_token_has_its_scheme_in_any_case(value: bytes) -> None:
    assert find_credentials({AUTHORIZATION: [value]}, b"") == Credentials(bearer="abc")


@pytest.mark.parametrize("value", [b"", b"abc", b"Basic YTpi", b"Bearer\tabc", b"Token abc", b"Bearerabc", b"\xff abc"])
def test_another_scheme_is_refused(value: bytes) -> None:
    assert reason_of({AUTHORIZATION: [value]}) == "unknown_scheme"


@pytest.mark.parametrize(
    "headers",
    [
        {API_KEY: [b"a"], AUTHORIZATION: [b"Bearer b"]},
        {API_KEY: [b""], AUTHORIZATION: [b""]},
        {API_KEY: [b"a", b"a"]},
        {AUTHORIZATION: [b"Bearer a", b"Bearer a"]},
    ],
)
def test_two_credentials_are_refused_even_if_they_are_the_same(headers: dict[bytes, list[bytes]]) -> None:
    assert reason_of(headers) == "several_credentials"


@pytest.mark.parametrize(
    "query",
    [
        b"api_key=x",
        b"a=b&access_token=x",
        b"API%5FKEY=x",
        b"x-api-key=",
        b"Authorization=Bearer+x",
        b"apikey",
        b"api-key=x",
    ],
)
def test_a_credential_in_the_query_string_is_refused_even_beside_a_good_one(query: bytes) -> None:
    assert reason_of({API_KEY: [b"a"]}, query) == "credentials_in_query"


@given(st.binary(max_size=200))
def test_no_query_string_raises_anything_else(query: bytes) -> None:
    with suppress(AuthenticationError):
        assert find_credentials({}, query) is None


def test_text_is_a_bearer_token_if_it_looks_like_one_and_else_an_api_key() -> None:
    for text in (token(), f"Bearer {token()}", f"bearer {token()}"):
        assert from_text(text) == Credentials(bearer=token())
    prefixed = ("Bearer a-key", f"Bearer  {token()}", f"Basic {token()}")
    for text in (*prefixed, "a.b.c", "an-api-key", "", "eyJ", "eyJhbGciOi.x", "eyJ.\xe9.c"):
        assert from_text(text) == Credentials(api_key=text)


@pytest.mark.parametrize("given", [Credentials(api_key="secret-key"), Credentials(bearer="secret-token")])
def test_a_credential_does_not_show(given: Credentials) -> None:
    assert "secret" not in f"{given!r} {given}"
