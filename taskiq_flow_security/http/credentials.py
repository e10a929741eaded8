"""What a request brings along to prove who asks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.http.asgi import Headers

API_KEY = b"x-api-key"
AUTHORIZATION = b"authorization"

_JWT = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*", re.ASCII)
"""The compact serialization of RFC 7515 section 3.1; ``eyJ`` is ``{"``."""

_IN_QUERY = frozenset({"access_token", "api-key", "api_key", "apikey", "authorization", "x-api-key", "x_api_key"})

_SUSPICIOUS = re.compile(rb"key|token|authorization|%", re.IGNORECASE)
"""Is in any query string that has one of these names."""


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """One credential, of one of two kinds."""

    api_key: str | None = None
    bearer: str | None = None


def find_credentials(headers: Headers, query: bytes) -> Credentials | None:
    """The credential of a request, if it has one.

    Raises `AuthenticationError` for several, for a repeated header, and for one in the query string, where every log
    on the way would keep it.
    """
    if query and _SUSPICIOUS.search(query):
        for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            if name.lower() in _IN_QUERY:
                raise AuthenticationError(
                    Reason.CREDENTIALS_IN_QUERY, "Send credentials in a header; the query string is no place for them."
                )
    keys, authorizations = headers.get(API_KEY, ()), headers.get(AUTHORIZATION, ())
    number = len(keys) + len(authorizations)
    if number > 1:
        raise AuthenticationError(
            Reason.SEVERAL_CREDENTIALS, "Send one credential: X-API-Key or Authorization, and only once."
        )
    if keys:
        key = keys[0].rstrip(b" \t")  # which is no part of it (RFC 9110 section 5.5), and some servers leave there
        return Credentials(key.decode("latin-1")) if key else None
    if not authorizations:
        return None
    scheme, _, token = authorizations[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise AuthenticationError(
            Reason.UNKNOWN_SCHEME, "Send an API key in X-API-Key, or a token as Authorization: Bearer <token>."
        )
    return Credentials(bearer=token.strip(" "))


def from_text(text: str) -> Credentials:
    """The credential that a WebSocket client sends as text: a bearer token if it looks like one, else an API key."""
    scheme, _, rest = text.partition(" ")
    token = rest if scheme.lower() == "bearer" else text  # as it stands in the header
    return Credentials(bearer=token) if _JWT.fullmatch(token) else Credentials(api_key=text)
