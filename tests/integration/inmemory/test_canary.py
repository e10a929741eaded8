"""No secret, token or signature that is used in a whole run reaches a log, result, error, `repr` or audit event."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends

from taskiq_flow_security import (
    ConfigurationError,
    FlowSecurity,
    FlowSecurityError,
    Principal,
    TaskiqFlowConfig,
    acting,
    current_principal,
    guard,
)
from taskiq_flow_security.audit import AuditFormatter
from taskiq_flow_security.broker import delivery as deliveries
from tests.attacks.forging import PRINCIPAL, SIGNATURE, principal_of, read, relabelled, signature_of, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process, config

API_KEY = "canary-api-key-7f3a9c"
WRONG_API_KEY = "canary-wrong-api-key-1b2c3d"
JWT_SECRET = "canary-jwt-secret-0123456789abcdef0123456789"
SIGNING_SECRET = "canary-signing-secret-0123456789abcdef012345"
STORE_PASSWORD = "canary-store-password-5d6e7f"
ENTRY = {"role": "processor", "pipelines": ["data"], "permissions": ["execute"]}


def _private_pem() -> str:
    return (
        Ed25519PrivateKey.generate()
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


PRIVATE_KEY = _private_pem()
SECRETS = [API_KEY, WRONG_API_KEY, JWT_SECRET, SIGNING_SECRET, STORE_PASSWORD, PRIVATE_KEY.splitlines()[1]]


class Everything(logging.Handler):
    """All that is logged, in every form in which it could be shown."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.shown: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.shown += [record.getMessage(), repr(record.args), repr(record.__dict__)]
        if record.exc_info:
            self.shown.append(logging.Formatter().formatException(record.exc_info))
        if record.name == "taskiq_flow.audit":
            self.shown.append(AuditFormatter().format(record))


@pytest.fixture
def everything() -> Iterator[Everything]:
    """Every logger of the process, at its most talkative."""
    handler = Everything()
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    levels = {logger: (logger.level, logger.disabled) for logger in loggers}
    root.addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.disabled = False
    yield handler
    root.removeHandler(handler)
    for logger, (level, disabled) in levels.items():
        logger.setLevel(level)
        logger.disabled = disabled


SETTINGS: dict[str, dict[str, Any]] = {
    "one secret": {},
    "a signing secret": {
        "signing_keys": [{"kid": "k", "alg": "HS256", "uses": ["issue", "send"], "secret": SIGNING_SECRET}]
    },
    "a private key": {
        "signing_keys": [{"kid": "k", "alg": "EdDSA", "uses": ["issue", "send"], "private_key": PRIVATE_KEY}]
    },
    "monitored": {"enforcement": "monitor"},
}


@pytest.fixture(params=SETTINGS.values(), ids=list(SETTINGS))
def canary(request: pytest.FixtureRequest, new_process: NewProcess, everything: Everything) -> Process:
    """A process that is full of secrets."""
    return new_process(
        jwt_secret=JWT_SECRET,
        api_keys={API_KEY: ENTRY},
        before=(SimpleRetryMiddleware(default_retry_label=True, default_retry_count=2),),
        **request.param,
    )


async def _error_of(awaitable: Any) -> list[str]:
    """What an error says of itself, if there is one."""
    try:
        await awaitable
    except Exception as error:
        return [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
    return []


def _register(process: Process) -> None:
    broker = process.broker

    @broker.task("failing", pipeline="data")
    async def failing() -> None:
        raise LookupError("no such row")

    @broker.task("again", pipeline="data")
    async def again(context: Context = TaskiqDepends()) -> str:
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()
        return repr(context.message) + repr(vars(context.message))

    @broker.task("parent", pipeline="data")
    @guard(predicate=lambda principal, arguments: True, rate_limit="100/minute")
    async def parent(caller: Principal = TaskiqDepends(current_principal)) -> str:
        await process.clean.kiq([1])
        return repr([caller, acting.current(), deliveries.current.get()])


async def _run(process: Process) -> tuple[list[str], list[str]]:
    """A whole run: all tokens that were in it, and all that it has shown."""
    _register(process)
    broker, security = process.broker, process.security
    shown: list[str] = []
    bearer = jwt.encode(
        {"sub": "alice", "roles": ["processor"], "permissions": ["execute"], "exp": 2_000_000_000},
        JWT_SECRET,
        algorithm="HS256",
    )
    expired = jwt.encode({"sub": "alice", "roles": [], "exp": 1}, JWT_SECRET, algorithm="HS256")
    tokens = [bearer, expired]
    await broker.startup()

    principals = [await security.authenticate(api_key=API_KEY), await security.authenticate(bearer=bearer)]
    for credentials in (
        {"api_key": WRONG_API_KEY},
        {"bearer": bearer[:-2]},
        {"bearer": expired},
        {"bearer": JWT_SECRET},
        {"api_key": API_KEY, "bearer": bearer},
        {"api_key": bearer},
        {"bearer": API_KEY},
    ):
        shown += await _error_of(security.authenticate(**credentials))

    tasks = [process.clean, *(broker.local_task_registry[name] for name in ("failing", "again", "parent"))]
    for principal in principals:
        for task in tasks:
            args = [[1]] if task is process.clean else []
            with security.acting_as(principal):
                await task.kiq(*args)
                shown.append(repr([acting.current(), security.principals, security.messages]))
        labels = security.labels_for(principal)
        tokens.append(labels[PRINCIPAL])
        await process.clean.kicker().with_labels(**labels).kiq([1])
        shown += await _error_of(process.report.kicker().with_labels(**labels).kiq())
        shown += await _error_of(process.clean.kicker().with_labels(**{PRINCIPAL: labels[PRINCIPAL][:-2]}).kiq([1]))
        shown += await _error_of(process.clean.kicker().with_labels(**labels).kiq(object()))
        with security.acting_as(principal):
            shown += await _error_of(process.report.kiq())
    shown += await _error_of(process.clean.kiq([1]))

    while broker.sent:
        data = broker.sent.pop(0)
        message = read(data)
        if SIGNATURE in message.labels:
            tokens += [principal_of(message), signature_of(message)]
            forgeries = [
                message.model_copy(update={"args": [[9]]}),
                relabelled(message, SIGNATURE, signature_of(message)[:-2]),
                relabelled(message, PRINCIPAL, bearer),
                relabelled(message, SIGNATURE, principal_of(message)),
                message.model_copy(update={"labels_types": {PRINCIPAL: 99}}),
            ]
            for forged in forgeries:
                await broker.deliver(write(forged.model_copy(update={"task_id": f"forged-{len(tokens)}"})))
            await broker.deliver(data[:-1])
        await broker.deliver(data)
        await broker.deliver(data)
    for result in broker.result_backend.results.values():
        shown += [repr(result), str(result), result.model_dump_json(), repr(vars(result)), repr(result.labels)]
        shown.append(repr(pickle.dumps(result)))
        if result.error is not None:
            shown += [str(result.error), repr(result.error), *traceback.format_exception(result.error)]
    await broker.shutdown()
    return tokens, shown


def _check(shown: list[str], secrets: list[str]) -> None:
    for secret in secrets:
        for text in shown:
            assert secret not in text, f"{secret[:24]}... is shown in: {text[:400]}"


def _parts(token: str) -> list[str]:
    """A token, and what would be enough to use it: the part that proves it."""
    return [token, token.rsplit(".", 1)[1]]


async def test_a_whole_run_shows_no_secret_anywhere(canary: Process, everything: Everything) -> None:
    tokens, shown = await _run(canary)
    assert len(tokens) > 20
    assert len(everything.shown) > 200
    assert canary.ran
    secrets = [*SECRETS, *(part for token in tokens for part in _parts(token))]
    _check(everything.shown, secrets)
    _check(shown, secrets)
    _check([repr(canary.audit.entries)], secrets)


async def test_no_public_object_shows_a_secret(canary: Process) -> None:
    security = canary.security
    principal = await security.authenticate(api_key=API_KEY)
    labels = security.labels_for(principal)
    settings = security.config
    objects: list[object] = [
        settings,
        settings.model_dump(),
        settings.model_dump(mode="json"),
        settings.model_dump_json(),
        settings.signing_keys,
        settings.api_keys,
        security,
        security.principals,
        security.messages,
        security.audit,
        *canary.broker.middlewares,
        canary.broker.formatter,
        principal,
        security.explain(principal, pipeline="data"),
        security.principals.verify(labels[PRINCIPAL], canary.clock()),
    ]
    shown = [text for value in objects for text in (repr(value), str(value))]
    _check(shown, [*SECRETS, labels[PRINCIPAL].rsplit(".", 1)[1]])


WRONG: dict[str, dict[str, Any]] = {
    "an unknown setting": {"jwt_secrets": JWT_SECRET},
    "a short secret": {"jwt_secret": "canary-short"},
    "a secret of another type": {"jwt_secret": [JWT_SECRET]},
    "an API key without a role": {"api_keys": {API_KEY: {}}},
    "an API key with a wrong permission": {"api_keys": {API_KEY: ENTRY | {"permissions": ["fly"]}}},
    "API keys of another type": {"api_keys": API_KEY},
    "a signing key of another algorithm": {
        "signing_keys": [{"kid": "k", "alg": "RS256", "uses": ["send", "issue"], "private_key": PRIVATE_KEY}]
    },
    "a signing key without a use": {
        "signing_keys": [{"kid": "k", "alg": "HS256", "uses": [], "secret": SIGNING_SECRET}]
    },
    "a signing key with both": {
        "signing_keys": [
            {"kid": "k", "alg": "HS256", "uses": ["send"], "secret": SIGNING_SECRET, "private_key": PRIVATE_KEY}
        ]
    },
    "a broken private key": {
        "signing_keys": [
            {"kid": "k", "alg": "EdDSA", "uses": ["send", "issue"], "private_key": PRIVATE_KEY.replace("-----END", "")}
        ]
    },
    "an unknown store": {"rate_limit_storage": f"nothing://user:{STORE_PASSWORD}@host"},
    "a store that is no URL": {"rate_limit_storage": STORE_PASSWORD},
}


@pytest.mark.parametrize("settings", WRONG.values(), ids=WRONG)
async def test_an_error_in_the_configuration_shows_no_secret(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        FlowSecurity(config(**settings))
    shown = [str(error.value), repr(error.value), *traceback.format_exception(error.value)]
    _check(shown, [*SECRETS, "canary-short"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEYS", f'{{"{API_KEY}": '),
        ("API_KEYS", f'["{API_KEY}"]'),
        ("JWT_SECRET", "canary-short"),
        ("SIGNING_KEYS", f'[{{"kid": "k", "secret": "{SIGNING_SECRET}"'),
        ("SIGNING_KEYS", f'[{{"kid": "k", "alg": "none", "uses": ["send"], "secret": "{SIGNING_SECRET}"}}]'),
        ("RATE_LIMIT_STORAGE", f"redis+nothing://user:{STORE_PASSWORD}@host"),
    ],
)
async def test_an_error_in_the_environment_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("TASKIQ_FLOW_RATE_LIMIT_STORAGE", "memory://")
    monkeypatch.setenv("TASKIQ_FLOW_JWT_SECRET", JWT_SECRET)
    monkeypatch.setenv(f"TASKIQ_FLOW_{name}", value)
    with pytest.raises(FlowSecurityError) as error:
        FlowSecurity(TaskiqFlowConfig())
    shown = [str(error.value), repr(error.value), *traceback.format_exception(error.value)]
    _check(shown, [*SECRETS, "canary-short"])
