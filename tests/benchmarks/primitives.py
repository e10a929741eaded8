"""The cost of each step on its own, beside the usual way to do the same."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import replace
from datetime import datetime, timezone
from itertools import cycle
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from taskiq.message import TaskiqMessage

from taskiq_flow_security import Permission, Principal
from taskiq_flow_security.broker import wire
from taskiq_flow_security.broker.kick_limits import KickLimits
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.guard import Guard
from taskiq_flow_security.core.policy import AccessRequest
from taskiq_flow_security.core.revocations import Revocations
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import KeySpec, Use
from taskiq_flow_security.tokens.message_signature import Delegation
from taskiq_flow_security.tokens.principal_token import PrincipalTokens
from tests.benchmarks.guarded import (
    ALGORITHMS,
    PIPELINE,
    PRINCIPAL,
    SECRET,
    Algorithm,
    audit_directory,
    ed25519_pem,
    new_audit,
    new_security,
)
from tests.benchmarks.harness import Batch, Effort, measure, repeat, repeat_async
from tests.benchmarks.report import Target, print_comparison

_TTL = 3600.0
_SIZE = 1000
"""Bytes of the message, of which it depends how much it may say."""
_AUDIENCE = "benchmark"


async def run(effort: Effort) -> list[Target]:
    """Print a table for each kind of step. They have no targets of their own."""
    with audit_directory() as directory:
        tables = {
            "Sign a message of 1 KB": _signing(),
            "Verify a message of 1 KB": _verifying(),
            "Issue and verify a principal": _principals(),
            "Decide": _decisions(),
            "Sign and verify a message of 1 KB that tasks have passed on": _delegations(),
            "Record an audit event": _events(directory),
        }
        for title, variants in tables.items():
            print_comparison(title, await measure(variants, effort), next(iter(variants)))
    return []


def _signing() -> dict[str, Batch]:
    message = _message()
    payload = wire.signed_payload(wire.to_wire(message))

    def variants(algorithm: Algorithm) -> dict[str, Batch]:
        signer = new_security(algorithm).messages
        return {
            f"PyJWT encode, {algorithm}": repeat(lambda: _pyjwt_encode(algorithm, payload)),
            f"sign, {algorithm}": repeat(lambda: signer.sign(payload, time.time(), time.time() + _TTL)),
        }

    return {
        **variants("HS256"),
        **variants("EdDSA"),
        "make the payload": repeat(lambda: wire.signed_payload(wire.to_wire(message))),
    }


def _verifying() -> dict[str, Batch]:
    message = _message()
    payload = wire.received_payload(message, _SIZE)

    def variants(algorithm: Algorithm) -> dict[str, Batch]:
        token = _pyjwt_encode(algorithm, payload)
        signer = new_security(algorithm).messages
        signature, _ = signer.sign(payload, time.time(), time.time() + _TTL)
        return {
            f"PyJWT decode, {algorithm}": repeat(lambda: _pyjwt_decode(algorithm, token, payload)),
            f"verify, {algorithm}": repeat(lambda: signer.read(signature, payload, time.time())),
        }

    return {
        **variants("HS256"),
        **variants("EdDSA"),
        "make the payload": repeat(lambda: wire.received_payload(message, _SIZE)),
        "read the message from the payload": repeat(lambda: wire.restore(message, payload)),
    }


def _delegations() -> dict[str, Batch]:
    payload = wire.received_payload(_message(), _SIZE)
    signer = new_security("HS256").messages

    def passed_on(depth: int) -> Batch:
        delegation = Delegation(tuple(f"task-number-{number}" for number in range(depth)))

        def sign_and_verify() -> object:
            now = time.time()
            signature, _ = signer.sign(payload, now, now + _TTL, delegation)
            return signer.read(signature, payload, now)

        return repeat(sign_and_verify)

    return {f"by {depth} tasks": passed_on(depth) for depth in (0, 1, 8, 32)}


def _principals() -> dict[str, Batch]:
    def variants(algorithm: Algorithm) -> dict[str, Batch]:
        keyring = _keyring(algorithm)
        issuer, verifier = _principal_tokens(keyring), _principal_tokens(keyring)
        text = issuer.issue(PRINCIPAL, "txn", time.time(), time.time() + _TTL).text
        token = _pyjwt_encode(algorithm, b"")
        return {
            f"PyJWT encode, {algorithm}": repeat(lambda: _pyjwt_encode(algorithm, b"")),
            f"issue, {algorithm}": repeat(lambda: issuer.issue(PRINCIPAL, "txn", time.time(), time.time() + _TTL)),
            f"PyJWT decode, {algorithm}": repeat(lambda: _pyjwt_decode(algorithm, token, b"")),
            # Each time by somebody new, who has not seen it.
            f"verify, {algorithm}, uncached": repeat(lambda: _principal_tokens(keyring).verify(text, time.time())),
            f"verify, {algorithm}, cached": repeat(lambda: verifier.verify(text, time.time())),
        }

    return {**variants("HS256"), **variants("EdDSA")}


def _decisions() -> dict[str, Batch]:
    security = new_security()
    request = AccessRequest(Permission.EXECUTE, PIPELINE, "work")
    elsewhere = AccessRequest(Permission.EXECUTE, "another-pipeline", "work")
    guarded = AccessRequest(
        Permission.EXECUTE,
        PIPELINE,
        "work",
        Guard(roles=frozenset({"processor"}), predicate=lambda _principal, arguments: arguments["number"] > 0),
        {"number": 1},
    )
    limited = AccessRequest(Permission.EXECUTE, PIPELINE, "work", Guard(rate_limit="100000/second"))
    restricted = Principal("bob", ["processor"], ["execute"], [PIPELINE])
    # Each has a window of its own, so that none grows beyond what is usual.
    callers = cycle([Principal(f"caller-{number}", ["processor"]) for number in range(1000)])
    limits = KickLimits(security)
    revoking = new_security("HS256")
    others = {f"subject-{number}": None for number in range(10_000)}
    revoking.live.in_force = replace(revoking.live.in_force, revocations=Revocations(subjects=others))
    return {
        "by an ACL": repeat(lambda: security.authorization.decide(PRINCIPAL, request)),
        "by an ACL, while 10,000 others are revoked": repeat(lambda: revoking.authorization.decide(PRINCIPAL, request)),
        "by whitelist, permission and ACL": repeat(lambda: security.authorization.decide(restricted, request)),
        "denied": repeat(lambda: security.authorization.decide(restricted, elsewhere)),
        "with a guard: roles and a predicate": repeat(lambda: security.authorization.decide(PRINCIPAL, guarded)),
        "explain": repeat(lambda: security.explain(PRINCIPAL, pipeline=PIPELINE)),
        "rate limit, in memory": repeat_async(lambda: limits.count(next(callers), limited, by_hook=False)),
    }


def _events(directory: Path) -> dict[str, Batch]:
    event = AuditEvent(
        event=EventName.TASK_AUTHZ_ALLOW,
        time=time.time(),
        outcome=Outcome.ALLOW,
        reason="acl",
        rule=f"pipeline_acls.{PIPELINE}.execute",
        sub="alice",
        roles=frozenset({"processor"}),
        pipeline=PIPELINE,
        permission="execute",
        task="work",
        task_id="0123456789abcdef0123456789abcdef",
        txn="0123456789abcdef01234567",
        jti="0123456789abcdef01234567",
        key_id="benchmark",
    )
    usual = logging.getLogger("benchmark.usual")
    usual.setLevel(logging.INFO)
    usual.propagate = False
    handler = logging.FileHandler(directory / "usual.log")
    handler.setFormatter(_JsonFormatter())
    usual.addHandler(handler)
    fields = {**event._asdict(), "time": None, "roles": ["processor"]}
    to_file, silent = new_audit(directory / "audit.log"), new_audit(None)
    return {
        "logging and json, to a file": repeat(lambda: usual.info("task_authz_allow", extra={"fields": fields})),
        "record, to a file": repeat(lambda: to_file.record(event)),
        "record, where nobody listens": repeat(lambda: silent.record(event)),
    }


class _JsonFormatter(logging.Formatter):
    """The usual one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = record.fields  # type: ignore[attr-defined]  # given as `extra`
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        return json.dumps({**fields, "event": record.getMessage(), "time": moment.isoformat()})


def _message() -> TaskiqMessage:
    return TaskiqMessage(
        task_id="0123456789abcdef0123456789abcdef",
        task_name="work",
        labels={"pipeline": PIPELINE},
        labels_types={"pipeline": 3},
        args=[list(range(100, 300))],
        kwargs={"note": "as long as a sentence"},
    )


def _keyring(algorithm: Algorithm) -> Keyring:
    if algorithm == "HS256":
        return Keyring.derived(SECRET)
    return Keyring.from_specs([KeySpec("benchmark", algorithm, frozenset(Use), private_key=ed25519_pem())])


def _principal_tokens(keyring: Keyring) -> PrincipalTokens:
    return PrincipalTokens(keyring, _AUDIENCE, _AUDIENCE, leeway=10)


def _pyjwt_keys(algorithm: Algorithm) -> tuple[Any, Any]:
    """The keys to sign and to verify with, parsed already."""
    if algorithm == "HS256":
        return SECRET, SECRET
    private = load_pem_private_key(ed25519_pem().encode(), password=None)
    assert isinstance(private, Ed25519PrivateKey)
    return private, private.public_key()


_PYJWT_KEYS = {algorithm: _pyjwt_keys(algorithm) for algorithm in ALGORITHMS}


def _pyjwt_encode(algorithm: Algorithm, payload: bytes) -> str:
    now = int(time.time())
    claims = {
        "iss": _AUDIENCE,
        "aud": _AUDIENCE,
        "sub": PRINCIPAL.subject,
        "roles": sorted(PRINCIPAL.roles),
        "iat": now,
        "exp": now + int(_TTL),
        "digest": hashlib.sha256(payload).hexdigest(),
    }
    return jwt.encode(claims, _PYJWT_KEYS[algorithm][0], algorithm=algorithm)


def _pyjwt_decode(algorithm: Algorithm, token: str, payload: bytes) -> None:
    claims = jwt.decode(token, _PYJWT_KEYS[algorithm][1], algorithms=[algorithm], audience=_AUDIENCE, issuer=_AUDIENCE)
    assert claims["digest"] == hashlib.sha256(payload).hexdigest()
