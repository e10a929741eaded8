"""A key proves what it is for, with its own algorithm, while it is valid, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from taskiq_flow_security import AuthenticationError, ConfigurationError, FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import Key, KeySpec, Use
from tests.attacks.forging import (
    PRINCIPAL,
    SIGNATURE,
    claims_of,
    encode,
    issue,
    payload_of,
    principal_of,
    read,
    relabelled,
    sign,
    with_principal,
    write,
)
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, SECRET, Process

ALGORITHMS = ("EdDSA", "ES256", "RS256")
Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@cache
def _key(alg: str, name: str) -> Private:
    """One key for each name."""
    if alg == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if alg == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


def private(alg: str, name: str, *uses: str, **more: Any) -> dict[str, Any]:
    """An entry of `signing_keys` for a process that holds the key."""
    pem = _key(alg, name).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"kid": name, "alg": alg, "uses": uses, "private_key": pem.decode(), **more}


def public(alg: str, name: str, *uses: str, **more: Any) -> dict[str, Any]:
    """An entry of `signing_keys` for a process that verifies with the key."""
    return {"kid": name, "alg": alg, "uses": uses, "public_key": public_pem(alg, name), **more}


def public_pem(alg: str, name: str) -> str:
    """What anybody may know of a key."""
    return (
        _key(alg, name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def stolen(alg: str, name: str, use: Use) -> Key:
    """The key in the hands of a thief, who uses it for whatever they like."""
    entry = private(alg, name)
    spec = KeySpec(kid=name, alg=alg, uses=frozenset([use]), private_key=entry["private_key"])
    return Keyring.from_specs([spec]).signer(use, 0)


@pytest.fixture(params=ALGORITHMS)
def alg(request: pytest.FixtureRequest) -> str:
    """Each algorithm with public keys."""
    return str(request.param)


@pytest.fixture
def api(alg: str, new_process: NewProcess) -> Process:
    """An API: it issues and sends."""
    return new_process(signing_keys=[private(alg, "api", "issue", "send"), public(alg, "worker", "send")])


@pytest.fixture
def worker(alg: str, new_process: NewProcess, api: Process) -> Process:
    """A worker: it sends with a key of its own and knows the public key of the API."""
    worker = new_process(signing_keys=[private(alg, "worker", "send"), public(alg, "api", "issue", "send")])
    worker.sender = api
    return worker


async def test_a_worker_runs_what_the_api_sends(worker: Process) -> None:
    await worker.serves()


async def test_a_worker_sends_in_the_name_of_a_principal_that_it_has_seen(api: Process, worker: Process) -> None:
    message = sign(read(await api.genuine()), stolen("EdDSA", "x", Use.SEND))  # only its principal is of use
    await worker.clean.kicker().with_labels(**{PRINCIPAL: principal_of(message)}).kiq([1])
    await worker.runs(worker.broker.take())


async def test_a_worker_cannot_issue(worker: Process) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        worker.security.labels_for(PROCESSOR)
    assert refusal.value.reason == "cannot_issue"


async def test_a_principal_forged_with_a_senders_key_is_refused(alg: str, api: Process, worker: Process) -> None:
    message = read(await api.genuine())
    claims = {**claims_of(principal_of(message)), "permissions": ["admin"]}
    token = issue(claims, stolen(alg, "worker", Use.ISSUE))
    forged = write(with_principal(message, token, stolen(alg, "worker", Use.SEND)))
    await worker.refuses(forged, "unknown_key")
    await api.refuses(forged, "unknown_key")


async def test_a_principal_forged_with_a_senders_key_under_the_issuers_id_is_refused(
    alg: str, api: Process, worker: Process
) -> None:
    message = read(await api.genuine())
    token = issue(claims_of(principal_of(message)), stolen(alg, "worker", Use.ISSUE), {"kid": "api"})
    forged = write(with_principal(message, token, stolen(alg, "worker", Use.SEND)))
    await worker.refuses(forged, "bad_signature")


async def test_a_message_signed_with_a_key_that_only_issues_is_refused(alg: str, new_process: NewProcess) -> None:
    process = new_process(signing_keys=[private(alg, "issuer", "issue"), private(alg, "sender", "send")])
    message = sign(read(await process.genuine()), stolen(alg, "issuer", Use.SEND))
    await process.refuses(write(message), "unknown_key")


async def test_a_message_signature_is_no_principal_though_one_key_makes_both(api: Process, worker: Process) -> None:
    message = read(await api.genuine())
    signature = str(message.labels[SIGNATURE])
    key = stolen(api.security.config.signing_keys[0].alg, "api", Use.SEND)
    await worker.refuses(write(with_principal(message, signature, key)), "malformed")


async def test_a_principal_in_the_place_of_a_signature_is_refused_though_one_key_makes_both(
    api: Process, worker: Process
) -> None:
    message = read(await api.genuine())
    await worker.refuses(write(relabelled(message, SIGNATURE, principal_of(message))), "malformed")


@pytest.mark.parametrize("newline", ["", "\n"])
async def test_a_public_key_is_no_secret_to_sign_messages_with(
    alg: str, api: Process, worker: Process, newline: str
) -> None:
    message = read(await api.genuine())
    header = {"alg": "HS256", "b64": False, "crit": ["b64"], "kid": "api", "typ": "taskiq-message+jws"}
    protected = encode({**header, "iat": 1_800_000_000, "exp": 1_900_000_000, "jti": "forged"})
    secret = public_pem(alg, "api").rstrip("\n") + newline
    mac = hmac.digest(secret.encode(), protected.encode() + b"." + payload_of(message), hashlib.sha256)
    await worker.refuses(write(relabelled(message, SIGNATURE, f"{protected}..{encode(mac)}")), "wrong_algorithm")


async def test_a_public_key_is_no_secret_to_sign_principals_with(alg: str, api: Process, worker: Process) -> None:
    message = read(await api.genuine())
    header = encode({"alg": "HS256", "kid": "api", "typ": "taskiq-principal+jwt"})
    signed = f"{header}.{encode(claims_of(principal_of(message)))}"
    mac = hmac.digest(public_pem(alg, "api").encode(), signed.encode(), hashlib.sha256)
    forged = with_principal(message, f"{signed}.{encode(mac)}", stolen(alg, "api", Use.SEND))
    await worker.refuses(write(forged), "wrong_algorithm")


async def test_a_public_key_is_no_secret_to_sign_bearer_tokens_with(alg: str) -> None:
    security = FlowSecurity(
        TaskiqFlowConfig(jwt_public_keys=[public_pem(alg, "idp")], signing_keys=[private(alg, "api", "issue", "send")])
    )
    header = encode({"alg": "HS256", "typ": "JWT"})
    signed = f"{header}.{encode({'sub': 'alice', 'roles': ['processor'], 'exp': 9_999_999_999})}"
    mac = hmac.digest(public_pem(alg, "idp").encode(), signed.encode(), hashlib.sha256)
    with pytest.raises(AuthenticationError) as refusal:
        await security.authenticate(bearer=f"{signed}.{encode(mac)}")
    assert refusal.value.reason == "wrong_algorithm"


async def test_the_key_of_another_algorithm_under_a_known_id_is_refused(
    alg: str, api: Process, worker: Process
) -> None:
    other = next(other for other in ALGORITHMS if other != alg)
    message = sign(read(await api.genuine()), stolen(other, "attacker", Use.SEND), {"kid": "api"})
    await worker.refuses(write(message), "wrong_algorithm")


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 256, 4096])
async def test_a_signature_of_any_length_that_is_none_is_refused(
    alg: str, api: Process, worker: Process, length: int
) -> None:
    message = read(await api.genuine())
    protected = str(message.labels[SIGNATURE]).split(".")[0]
    forged = relabelled(message, SIGNATURE, f"{protected}..{encode(bytes(length))}")
    await worker.refuses(write(forged), "bad_signature")


async def test_a_key_signs_what_it_is_for_also_where_it_is_said_to_verify(new_process: NewProcess) -> None:
    process = new_process(signing_keys=[private("EdDSA", "api", "issue", "send", "verify")])
    await process.runs(await process.genuine())


async def test_a_kick_that_nobody_here_can_sign_raises_at_once_in_the_caller_and_is_recorded(
    new_process: NewProcess,
) -> None:
    process = new_process(signing_keys=[private("EdDSA", "api", "issue"), public("EdDSA", "worker", "send")])
    with pytest.raises(AuthenticationError) as refusal:
        await process.genuine()
    assert refusal.value.reason == "cannot_issue"
    assert process.broker.sent == []
    assert [(entry.outcome, entry.reason) for entry in process.audit.take()] == [("deny", "cannot_issue")]


async def test_a_process_does_not_sign_with_a_key_that_it_only_verifies_with(new_process: NewProcess) -> None:
    process = new_process(signing_keys=[private("EdDSA", "api", "verify")])
    with pytest.raises(AuthenticationError) as refusal:
        process.security.labels_for(PROCESSOR)
    assert refusal.value.reason == "cannot_issue"
    with pytest.raises(AuthenticationError) as refusal:
        process.security.messages.sign(b"", process.clock.now, process.clock.now + 60)
    assert refusal.value.reason == "cannot_issue"


@pytest.mark.parametrize(
    ("key", "verifying"),
    [
        (private("EdDSA", "api", "issue", "send"), public("EdDSA", "api", "verify")),
        (
            {"kid": "api", "alg": "HS256", "uses": ["issue", "send"], "secret": SECRET},
            {"kid": "api", "alg": "HS256", "uses": ["verify"], "secret": SECRET},
        ),
    ],
)
async def test_a_key_that_is_only_to_verify_with_is_believed_in_principals_and_messages(
    new_process: NewProcess, key: dict[str, Any], verifying: dict[str, Any]
) -> None:
    worker = new_process(signing_keys=[private("EdDSA", "worker", "send"), verifying])
    await worker.runs(await new_process(signing_keys=[key]).genuine())


@pytest.mark.parametrize("uses", [("send", "verify"), ("issue", "verify"), ("fire", "verify")])
async def test_a_key_to_verify_one_use_with_is_believed_in_no_other(
    new_process: NewProcess, uses: tuple[str, ...]
) -> None:
    api = new_process(signing_keys=[private("EdDSA", "api", "issue", "send")])
    keys = [private("EdDSA", "own", "issue", "send"), public("EdDSA", "api", *uses)]
    await new_process(signing_keys=keys).refuses(await api.genuine(), "unknown_key", serves=False)


async def test_what_a_key_has_signed_is_refused_when_its_time_is_over(new_process: NewProcess) -> None:
    api = new_process()
    end = datetime.fromtimestamp(api.clock.now + 60, timezone.utc)
    old = private("EdDSA", "old", "issue", "send", not_after=end.isoformat())
    process = new_process(signing_keys=[old, private("EdDSA", "new", "issue", "send")])
    only_old = new_process(signing_keys=[old])
    message = await only_old.genuine()
    process.clock.now += 60 + 9
    await process.runs(message)
    process.broker.result_backend.results.clear()
    process.clock.now += 2
    await process.refuses(message, "unknown_key")


async def test_what_a_key_has_signed_before_its_time_is_refused(new_process: NewProcess) -> None:
    process = new_process(signing_keys=[private("EdDSA", "key", "issue", "send")])
    start = datetime.fromtimestamp(process.clock.now, timezone.utc) + timedelta(hours=1)
    later = private("EdDSA", "key", "issue", "send", not_before=start.isoformat())
    worker = new_process(signing_keys=[later, private("EdDSA", "now", "issue", "send")])
    await worker.refuses(await process.genuine(), "unknown_key")


async def test_a_public_key_cannot_be_configured_as_a_secret() -> None:
    with pytest.raises(ConfigurationError):
        TaskiqFlowConfig(
            signing_keys=[{"kid": "k", "alg": "HS256", "uses": ["send"], "public_key": public_pem("RS256", "api")}]
        )


async def test_one_key_id_cannot_be_configured_for_two_algorithms() -> None:
    with pytest.raises(ConfigurationError):
        TaskiqFlowConfig(signing_keys=[private("EdDSA", "k", "send"), private("ES256", "k", "send")])
