"""A message without a signature that was made over exactly this message, by a key of the deployment, does not run."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

import pytest
from taskiq.message import TaskiqMessage

from tests.attacks.forging import (
    ABSENT,
    ISSUE_KEY,
    PRINCIPAL,
    SEND_KEY,
    SIGNATURE,
    STRANGER_SEND_KEY,
    Fields,
    encode,
    header_of,
    payload_of,
    principal_of,
    read,
    relabelled,
    sign,
    signature_of,
    with_header,
    write,
)
from tests.integration.inmemory.harness import VIEWER, Process

Change = Callable[[TaskiqMessage], TaskiqMessage]


async def test_the_helpers_of_these_attacks_write_messages_that_are_accepted(process: Process) -> None:
    await process.runs(write(sign(read(await process.genuine()))))


@pytest.mark.parametrize("missing", [(PRINCIPAL, SIGNATURE), (SIGNATURE,), (PRINCIPAL,)])
async def test_a_message_without_both_labels_is_unsigned(process: Process, missing: tuple[str, ...]) -> None:
    message = read(await process.genuine())
    for label in missing:
        message = relabelled(message, label, ABSENT)
    await process.refuses(write(message), "unsigned")


async def test_a_message_with_empty_labels_of_its_own_types_is_unsigned(process: Process) -> None:
    message = TaskiqMessage(task_id="forged", task_name="clean", labels={}, labels_types={}, args=[[1]], kwargs={})
    await process.refuses(write(message), "unsigned")


async def test_a_signature_by_an_unknown_key_is_refused(process: Process) -> None:
    message = sign(read(await process.genuine()), STRANGER_SEND_KEY)
    await process.refuses(write(message), "unknown_key")


async def test_a_signature_by_an_unknown_key_under_a_known_id_is_refused(process: Process) -> None:
    message = sign(read(await process.genuine()), STRANGER_SEND_KEY, {"kid": SEND_KEY.kid})
    await process.refuses(write(message), "bad_signature")


async def test_a_signature_by_a_known_key_under_an_unknown_id_is_refused(process: Process) -> None:
    message = sign(read(await process.genuine()), SEND_KEY, {"kid": "somebody-else"})
    await process.refuses(write(message), "unknown_key")


async def test_a_signature_by_the_key_for_principals_is_refused(process: Process) -> None:
    message = sign(read(await process.genuine()), ISSUE_KEY)
    await process.refuses(write(message), "bad_signature")


async def test_the_signature_of_another_message_is_refused(process: Process) -> None:
    other = read(await process.kick(process.clean, [3]))
    message = relabelled(read(await process.genuine()), SIGNATURE, signature_of(other))
    await process.refuses(write(message), "bad_signature")


async def test_the_principal_label_is_no_signature(process: Process) -> None:
    message = read(await process.genuine())
    await process.refuses(write(relabelled(message, SIGNATURE, principal_of(message))), "malformed")


async def test_an_altered_bit_of_the_signature_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    text = signature_of(message)
    altered = text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]
    await process.refuses(write(relabelled(message, SIGNATURE, altered)), "bad_signature")


async def test_a_shortened_signature_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    await process.refuses(write(relabelled(message, SIGNATURE, signature_of(message)[:-3])), "bad_signature")


HEADERS: dict[str, tuple[Fields, str]] = {
    "alg none": ({"alg": "none"}, "wrong_algorithm"),
    "alg None": ({"alg": "None"}, "wrong_algorithm"),
    "alg null": ({"alg": None}, "wrong_algorithm"),
    "alg in lower case": ({"alg": "hs256"}, "wrong_algorithm"),
    "alg longer": ({"alg": "HS512"}, "wrong_algorithm"),
    "alg asymmetric": ({"alg": "RS256"}, "wrong_algorithm"),
    "alg a list": ({"alg": ["HS256"]}, "wrong_algorithm"),
    "alg absent": ({"alg": ABSENT}, "malformed"),
    "kid absent": ({"kid": ABSENT}, "malformed"),
    "kid null": ({"kid": None}, "malformed"),
    "kid a list": ({"kid": [SEND_KEY.kid]}, "malformed"),
    "kid a mapping": ({"kid": {"id": SEND_KEY.kid}}, "malformed"),
    "kid a path": ({"kid": "../../../dev/null"}, "unknown_key"),
    "kid empty": ({"kid": ""}, "unknown_key"),
    "typ of a principal": ({"typ": "taskiq-principal+jwt"}, "wrong_type"),
    "typ of a bearer token": ({"typ": "JWT"}, "wrong_type"),
    "typ in another case": ({"typ": "TASKIQ-MESSAGE+JWS"}, "wrong_type"),
    "typ absent": ({"typ": ABSENT}, "malformed"),
    "jku": ({"jku": "https://attacker.example/keys"}, "malformed"),
    "jwk": ({"jwk": {"kty": "oct", "k": "c2VjcmV0"}}, "malformed"),
    "x5u": ({"x5u": "https://attacker.example/chain"}, "malformed"),
    "x5c": ({"x5c": ["MIIB"]}, "malformed"),
    "x5t": ({"x5t": "MIIB"}, "malformed"),
    "cty": ({"cty": "JWT"}, "malformed"),
    "zip": ({"zip": "DEF"}, "malformed"),
    "any other": ({"anything": 1}, "malformed"),
    "crit unknown": ({"crit": ["b64", "exp"]}, "malformed"),
    "crit of others only": ({"crit": ["exp"]}, "malformed"),
    "crit empty": ({"crit": []}, "malformed"),
    "crit a string": ({"crit": "b64"}, "malformed"),
    "crit absent": ({"crit": ABSENT}, "malformed"),
    "b64 true": ({"b64": True}, "malformed"),
    "b64 null": ({"b64": None}, "malformed"),
    "b64 zero": ({"b64": 0}, "malformed"),
    "b64 absent": ({"b64": ABSENT}, "malformed"),
    "iat a string": ({"iat": "1800000000"}, "malformed"),
    "iat infinite": ({"iat": float("inf")}, "malformed"),
    "iat not a number": ({"iat": float("nan")}, "malformed"),
    "iat a boolean": ({"iat": True}, "malformed"),
    "exp a string": ({"exp": "9999999999"}, "malformed"),
    "exp infinite": ({"exp": float("inf")}, "malformed"),
    "exp not a number": ({"exp": float("nan")}, "malformed"),
    "exp absent": ({"exp": ABSENT}, "malformed"),
    "exp past": ({"exp": 1_799_999_000}, "expired"),
    "exp far below zero": ({"exp": -(10**400)}, "expired"),
    "iat ahead": ({"iat": 1_800_001_000}, "not_yet_valid"),
    "iat far ahead": ({"iat": 10**300}, "not_yet_valid"),
    "iat beyond all numbers": ({"iat": 10**400}, "malformed"),
    "jti a number": ({"jti": 1}, "malformed"),
    "jti absent": ({"jti": ABSENT}, "malformed"),
}

each_header = pytest.mark.parametrize(("changes", "reason"), HEADERS.values(), ids=HEADERS)


@each_header
async def test_a_signature_with_a_header_that_is_not_ours_is_refused_even_from_a_holder_of_the_key(
    process: Process, changes: Fields, reason: str
) -> None:
    await process.refuses(write(sign(read(await process.genuine()), header=changes)), reason)


@each_header
async def test_another_header_in_front_of_a_genuine_signature_is_refused(
    process: Process, changes: Fields, reason: str
) -> None:
    message = read(await process.genuine())
    text = with_header(signature_of(message), changes)
    seen = reason if reason in ("malformed", "wrong_algorithm", "wrong_type", "unknown_key") else "bad_signature"
    await process.refuses(write(relabelled(message, SIGNATURE, text)), seen)


async def test_no_algorithm_and_no_signature_are_refused(process: Process) -> None:
    message = read(await process.genuine())
    protected = encode({**header_of(signature_of(message)), "alg": "none"})
    await process.refuses(write(relabelled(message, SIGNATURE, f"{protected}..")), "wrong_algorithm")


async def test_an_empty_signature_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    protected = signature_of(message).split(".")[0]
    await process.refuses(write(relabelled(message, SIGNATURE, f"{protected}..")), "bad_signature")


@pytest.mark.parametrize("b64", [True, ABSENT])
async def test_a_signature_over_an_encoded_payload_is_refused(process: Process, b64: object) -> None:
    message = read(await process.genuine())
    header = {**header_of(signature_of(message)), "b64": b64}
    protected = encode({name: value for name, value in header.items() if value is not ABSENT})
    signed = f"{protected}.{encode(payload_of(message))}"
    text = f"{protected}..{encode(SEND_KEY.sign(signed.encode()))}"
    await process.refuses(write(relabelled(message, SIGNATURE, text)), "malformed")


async def test_a_signature_that_brings_its_own_payload_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    protected = signature_of(message).split(".")[0]
    payload = encode(b"what was signed")
    text = f"{protected}.{payload}.{encode(SEND_KEY.sign(f'{protected}.{payload}'.encode()))}"
    await process.refuses(write(relabelled(message, SIGNATURE, text)), "malformed")


async def test_the_deployments_secret_itself_signs_nothing(process: Process) -> None:
    message = read(await process.genuine())
    protected = signature_of(message).split(".")[0]
    secret = b"the-secret-of-this-deployment-0123456789"
    mac = hmac.digest(secret, protected.encode() + b"." + payload_of(message), hashlib.sha256)
    await process.refuses(write(relabelled(message, SIGNATURE, f"{protected}..{encode(mac)}")), "bad_signature")


def _update(**changes: object) -> Change:
    return lambda message: message.model_copy(update=changes)


def _label(name: str, value: object) -> Change:
    return lambda message: relabelled(message, name, value)


def _label_type(name: str, value: object) -> Change:
    def change(message: TaskiqMessage) -> TaskiqMessage:
        types = {**(message.labels_types or {}), name: value}
        return message.model_copy(update={"labels_types": {k: v for k, v in types.items() if v is not ABSENT}})

    return change


CHANGES: dict[str, Change] = {
    "task id": _update(task_id="0" * 32),
    "task name": _update(task_name="purge"),
    "task of another pipeline": _update(task_name="report"),
    "args emptied": _update(args=[]),
    "args added": _update(args=[[1, 2], 5]),
    "args reordered": _update(args=[[2, 1]]),
    "args nested": _update(args=[[[1, 2]]]),
    "an integer made a string": _update(args=[["1", 2]]),
    "an integer made a fraction": _update(args=[[1.0, 2]]),
    "an integer made a boolean": _update(args=[[True, 2]]),
    "an integer made null": _update(args=[[None, 2]]),
    "kwargs emptied": _update(kwargs={}),
    "kwargs changed": _update(kwargs={"scale": 4}),
    "kwargs added": _update(kwargs={"scale": 3, "extra": 1}),
    "kwargs renamed": _update(kwargs={"Scale": 3}),
    "kwargs as args": _update(args=[[1, 2], 3], kwargs={}),
    "label types gone": _update(labels_types=None),
    "label types emptied": _update(labels_types={}),
    "label changed": _label("note", "8"),
    "label removed": _label("note", ABSENT),
    "label value made a number": _label("note", 7),
    "label value made null": _label("note", None),
    "label type changed": _label_type("note", 2),
    "label type removed": _label_type("note", ABSENT),
    "label type of nothing": _label_type("nothing", 3),
    "type of the principal": _label_type(PRINCIPAL, 3),
    "timeout added": _label("timeout", "0.001"),
    "ack_type added": _label("ack_type", "manual"),
    "max_retries added": _label("max_retries", "1000000"),
    "retry_on_error added": _label("retry_on_error", "True"),
    "delay added": _label("delay", "1000000"),
    "queue_ttl added": _label("queue_ttl", "1000000"),
    "X-Taskiq-requeue added": _label("X-Taskiq-requeue", "-1000000"),
    "_retries added": _label("_retries", "-1000000"),
    "schedule_id added": _label("schedule_id", "1"),
    "unknown label added": _label("anything", "1"),
    "nested label added": _label("anything", {"deep": ["er"]}),
    "pipeline changed": _label("pipeline", "reports"),
    "pipeline removed": _label("pipeline", ABSENT),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_message_that_was_changed_after_it_was_signed_is_refused(process: Process, change: Change) -> None:
    await process.refuses(write(change(read(await process.genuine()))), "bad_signature")


async def test_the_principal_of_another_message_is_refused(process: Process) -> None:
    other = read(await process.kick(process.clean, [1]))
    message = relabelled(read(await process.genuine()), PRINCIPAL, principal_of(other))
    await process.refuses(write(message), "bad_signature")


async def test_the_principal_of_somebody_with_fewer_rights_is_refused_too(process: Process) -> None:
    labels = process.security.labels_for(VIEWER)
    message = relabelled(read(await process.genuine()), PRINCIPAL, labels[PRINCIPAL])
    await process.refuses(write(message), "bad_signature")


async def test_a_message_can_wait_until_it_expires_and_no_longer(process: Process) -> None:
    message, late = await process.genuine(), await process.genuine()
    process.clock.now += 80_000
    await process.runs(message)
    process.clock.now += 6_400 + 10
    await process.refuses(late, "expired")


async def test_a_message_expires_after_its_time_to_live_and_the_leeway(process: Process) -> None:
    briefly = process.clean.kicker().with_labels(queue_ttl=60)
    message, late = await process.kick(briefly, [1]), await process.kick(briefly, [1])
    process.clock.now += 60 + 9
    await process.runs(message)
    process.clock.now += 2
    await process.refuses(late, "expired")


async def test_a_padded_copy_of_a_genuine_signature_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    text = signature_of(message)
    padded = text + "=" * (-len(text.split(".")[2]) % 4)
    assert base64.urlsafe_b64decode(padded.split(".")[2])
    await process.refuses(write(relabelled(message, SIGNATURE, padded)), "malformed")
