"""Writing messages that nobody sent, with or without a key."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from taskiq.message import TaskiqMessage

from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Key, Use
from tests.integration.inmemory.harness import SECRET, STRANGER_SECRET

PRINCIPAL = "taskiq_flow_principal"
SIGNATURE = "taskiq_flow_signature"

Fields = Mapping[str, object]
"""The fields of a JOSE header or the claims of a token, some of which an attack changes."""

ABSENT = object()
"""In place of a field that is left out."""

_NOW = 1_800_000_000


def key_of(secret: str, use: Use) -> Key:
    """The key that a deployment with this `jwt_secret` has for this use."""
    return Keyring.derived(secret).signer(use, _NOW)


SEND_KEY = key_of(SECRET, Use.SEND)
ISSUE_KEY = key_of(SECRET, Use.ISSUE)
STRANGER_SEND_KEY = key_of(STRANGER_SECRET, Use.SEND)
STRANGER_ISSUE_KEY = key_of(STRANGER_SECRET, Use.ISSUE)


def read(data: bytes) -> TaskiqMessage:
    """A message as it lies on the wire."""
    return TaskiqMessage.model_validate_json(data)


def write(message: TaskiqMessage) -> bytes:
    """A message for the wire."""
    return message.model_dump_json().encode()


def encode(data: bytes | Fields) -> str:
    """A segment of a token: base64url without padding."""
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(segment: str) -> dict[str, Any]:
    """The fields in a segment of a token."""
    fields = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    assert isinstance(fields, dict)
    return fields


def header_of(token: str) -> dict[str, Any]:
    """The header of a token."""
    return decode(token.split(".")[0])


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a token."""
    return decode(token.split(".")[1])


def changed(fields: Fields, changes: Fields) -> Fields:
    """The fields with these changes; what is `ABSENT` is left out."""
    return {name: value for name, value in {**fields, **changes}.items() if value is not ABSENT}


def with_header(token: str, changes: Fields) -> str:
    """The token with another header and its old signature."""
    header, payload, signature = token.split(".")
    return ".".join((encode(changed(decode(header), changes)), payload, signature))


def signature_of(message: TaskiqMessage) -> str:
    """The signature that a message carries."""
    text = message.labels[SIGNATURE]
    assert isinstance(text, str)
    return text


def principal_of(message: TaskiqMessage) -> str:
    """The principal that a message carries."""
    text = message.labels[PRINCIPAL]
    assert isinstance(text, str)
    return text


def payload_of(message: TaskiqMessage) -> bytes:
    """What the signature of a message covers."""
    labels = {name: value for name, value in message.labels.items() if name != SIGNATURE}
    return to_json(message.model_copy(update={"labels": labels}).model_dump(mode="json"))


def sign(message: TaskiqMessage, key: Key = SEND_KEY, header: Fields | None = None) -> TaskiqMessage:
    """The message signed anew, as a holder of that key can, with these changes to the header."""
    standard = {
        "alg": key.alg,
        "b64": False,
        "crit": ["b64"],
        "kid": key.kid,
        "typ": "taskiq-message+jws",
        "iat": _NOW,
        "exp": _NOW + 3600,
        "jti": "forged",
    }
    protected = encode(changed(standard, header or {}))
    signature = encode(key.sign(protected.encode() + b"." + payload_of(message)))
    return relabelled(message, SIGNATURE, f"{protected}..{signature}")


def issue(claims: Fields, key: Key = ISSUE_KEY, header: Fields | None = None) -> str:
    """A principal signed by that key, with these changes to the header."""
    standard = {"alg": key.alg, "kid": key.kid, "typ": "taskiq-principal+jwt"}
    signed = f"{encode(changed(standard, header or {}))}.{encode(claims)}"
    return f"{signed}.{encode(key.sign(signed.encode()))}"


def relabelled(message: TaskiqMessage, name: str, value: object) -> TaskiqMessage:
    """The message with another value of a label, or without it if that is `ABSENT`."""
    return message.model_copy(update={"labels": changed(message.labels, {name: value})})


def with_principal(message: TaskiqMessage, principal: object, key: Key = SEND_KEY) -> TaskiqMessage:
    """The message with another principal, signed anew by a holder of that key."""
    return sign(relabelled(message, PRINCIPAL, principal), key)
