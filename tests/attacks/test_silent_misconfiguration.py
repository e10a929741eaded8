"""Settings that cannot be meant, and would secure less than they say, are refused at the start."""

from __future__ import annotations

import logging
import logging.config
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import pytest
from taskiq import InMemoryBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_flow_security import (
    AuthenticationError,
    ConfigurationError,
    FlowSecurity,
    SecurityMiddleware,
    TaskiqFlowConfig,
)
from taskiq_flow_security.http import HTTPSecurityMiddleware, create_visualization_api
from tests.integration.inmemory.harness import SECRET, AuditTrail, Process, Queue, config

KEY = "an-api-key-of-good-length"


@pytest.mark.parametrize(
    "settings",
    [
        {"task_acls": {"task:purge": {"execute": ["operator"]}}},
        {"pipeline_acls": {"endpoint:execute_pipeline": {"execute": ["operator"]}}},
    ],
    ids=["a task under its resource's name", "an endpoint"],
)
def test_an_acl_that_never_applies_is_a_configuration_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        config(**settings)


@pytest.mark.parametrize("setting", [name for name in TaskiqFlowConfig.model_fields if name.startswith("unsafe_")])
def test_a_setting_that_lets_something_in_is_logged_wherever_it_is_set(
    setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    FlowSecurity(config(**{setting: True}))
    assert [message for message in caplog.messages if setting in message]


@pytest.mark.parametrize("window", [{"not_after": 2020}, {"not_before": 2999}], ids=["over", "to come"])
def test_keys_none_of_which_can_be_used_now_are_a_configuration_error(window: dict[str, int]) -> None:
    times = {name: datetime(year, 1, 1, tzinfo=timezone.utc) for name, year in window.items()}
    key = {"kid": "only", "alg": "HS256", "uses": ["issue", "send"], "secret": SECRET, **times}
    with pytest.raises(ConfigurationError):
        FlowSecurity(config(jwt_secret=None, signing_keys=[key]))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (
            "API_KEYS",
            f'{{"{KEY}": {{"role": "viewer", "permissions": ["read"]}},'
            f' "{KEY}": {{"role": "viewer", "permissions": ["admin"]}}}}',
        ),
        ("PIPELINE_ACLS", '{"data": {"execute": ["operator"], "execute": ["viewer"]}}'),
    ],
    ids=["API key", "permission"],
)
def test_a_name_given_twice_in_a_variable_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"TASKIQ_FLOW_{variable}", value)
    with pytest.raises(ConfigurationError):
        FlowSecurity(_from_environment())


@pytest.mark.parametrize("variable", ["API_KEYS", "PIPELINE_ACLS", "SIGNING_KEYS"])
def test_a_variable_that_is_null_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(f"TASKIQ_FLOW_{variable}", "null")
    with pytest.raises(ConfigurationError, match=variable.lower()):
        _from_environment()


def test_a_misspelled_variable_is_said_loudly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TASKIQ_FLOW_PIPELINE_ACL", '{"data": {"execute": ["operator"]}}')
    FlowSecurity(_from_environment())
    assert "TASKIQ_FLOW_PIPELINE_ACL" in caplog.text


def _from_environment() -> Any:
    from taskiq_flow_security import TaskiqFlowConfig

    return TaskiqFlowConfig(jwt_secret=SECRET)


class OwnPickleSerializer(TaskiqSerializer):
    """Pickle under another name."""

    def dumpb(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def loadb(self, value: bytes) -> Any:
        return pickle.loads(value)


class PickleFormatter(TaskiqFormatter):
    """Pickle without a serializer."""

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        data = pickle.dumps(message.model_dump())
        return BrokerMessage(task_id=message.task_id, task_name=message.task_name, message=data, labels=message.labels)

    def loads(self, message: bytes) -> TaskiqMessage:
        return TaskiqMessage.model_validate(pickle.loads(message))


def _with_serializer(broker: Queue) -> None:
    broker.with_serializer(OwnPickleSerializer())


def _with_formatter(broker: Queue) -> None:
    broker.with_formatter(PickleFormatter())


@pytest.mark.parametrize("use_pickle", [_with_serializer, _with_formatter])
def test_pickle_by_any_name_is_a_configuration_error(use_pickle: Any) -> None:
    broker = Queue()
    use_pickle(broker)
    with pytest.raises(ConfigurationError):
        broker.add_middlewares(SecurityMiddleware(FlowSecurity(config())))


@contextmanager
def _logging_as_it_was(name: str) -> Iterator[None]:
    root, logger = logging.getLogger(), logging.getLogger(name)
    handlers, level = root.handlers[:], root.level
    disabled = [other for other in logging.Logger.manager.loggerDict.values() if isinstance(other, logging.Logger)]
    before = {other: other.disabled for other in disabled}
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        for other, was in before.items():
            other.disabled = was
        assert not logger.disabled


async def test_logging_that_is_configured_later_keeps_no_decision_from_being_recorded(
    process: Process, audit: AuditTrail
) -> None:
    audit.take()
    with _logging_as_it_was("taskiq_flow.audit"):
        logging.config.dictConfig({"version": 1})  # by default, it disables all loggers that are there
        with pytest.raises(AuthenticationError):
            await process.security.authenticate(api_key="unknown")
    assert [entry.event for entry in audit.take()] == ["authn_login_fail"]


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY}\t", "clé-qui-est-assez-longue", "\x00" * 30])
def test_an_api_key_that_no_header_carries_is_logged(key: str, caplog: pytest.LogCaptureFixture) -> None:
    FlowSecurity(config(api_keys={key: {"role": "processor", "permissions": ["execute"]}}))
    assert "1 API keys cannot be sent in a header" in caplog.text


@pytest.mark.parametrize("key", [KEY, "all of it, with spaces inside", "~" * 30, f"sha256:{'0' * 64}"])
def test_nothing_is_said_of_an_api_key_that_a_header_carries(key: str, caplog: pytest.LogCaptureFixture) -> None:
    FlowSecurity(config(api_keys={key: {"role": "processor", "permissions": ["execute"]}}))
    assert "cannot be sent" not in caplog.text


@pytest.mark.parametrize(
    ("make", "needed"),
    [
        (lambda: FlowSecurity({}), "FlowSecurity needs a TaskiqFlowConfig, not dict"),  # type: ignore[arg-type]  # what is wrong with it, here and below
        (lambda: FlowSecurity(config(), audit=logging.getLogger()), "needs an AuditLogger to record with, not Root"),  # type: ignore[arg-type]
        (lambda: SecurityMiddleware(config()), "SecurityMiddleware needs a FlowSecurity, not TaskiqFlowConfig"),  # type: ignore[arg-type]
        (lambda: HTTPSecurityMiddleware(lambda *_: None, config()), "HTTPSecurityMiddleware needs a FlowSecurity, not"),  # type: ignore[arg-type]
        (lambda: create_visualization_api(InMemoryBroker(), {}), "FlowSecurity needs a TaskiqFlowConfig, not dict"),  # type: ignore[arg-type]
        (lambda: FlowSecurity(config()).labels_for(None), "a Principal is needed, not NoneType"),  # type: ignore[arg-type]
        (lambda: FlowSecurity(config()).acting_as("alice").__enter__(), "a Principal is needed, not str"),  # type: ignore[arg-type]
    ],
)
def test_what_is_made_of_something_else_says_what_it_needs(make: Callable[[], object], needed: str) -> None:
    with pytest.raises(TypeError, match=needed):
        make()
