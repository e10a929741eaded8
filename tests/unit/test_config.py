"""What the settings are, and what they must not be."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import pytest
from pydantic import SecretStr

from taskiq_flow_security import ConfigurationError, FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.setting_types import ApiKeySecret

SECRET = "the-secret-that-must-not-be-seen"
GUIDE: dict[str, Any] = {
    "security_enabled": True,
    "auth_provider": "api_key",
    "api_keys": {},
    "jwt_secret": None,
    "require_https": True,
    "pipeline_acls": {},
    "rate_limit_enabled": True,
    "rate_limit_default": "100/minute",
    "websocket_require_auth": True,
    "websocket_max_connections": 1000,
}
ENTRY = {"role": "admin", "pipelines": ["*"], "permissions": ["read", "execute", "admin"]}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TaskiqFlowConfig.model_fields:
        monkeypatch.delenv(f"TASKIQ_FLOW_{name.upper()}", raising=False)


@pytest.mark.parametrize("name", GUIDE)
def test_a_setting_has_its_default(name: str) -> None:
    assert getattr(TaskiqFlowConfig(), name) == GUIDE[name]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("security_enabled", "false", False),
        ("auth_provider", "jwt", "jwt"),
        ("require_https", "0", False),
        ("pipeline_acls", '{"a": {"read": ["viewer"]}}', {"a": {"read": ["viewer"]}}),
        ("task_acls", '{"t": {"execute": ["viewer"]}}', {"t": {"execute": ["viewer"]}}),
        ("rate_limit_enabled", "false", False),
        ("rate_limit_default", "30/minute", "30/minute"),
        ("websocket_require_auth", "false", False),
        ("enforcement", "monitor", "monitor"),
        ("queue_ttl", "60", 60.0),
    ],
)
def test_a_setting_is_read_from_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"TASKIQ_FLOW_{name.upper()}", text)
    assert getattr(TaskiqFlowConfig(), name) == value


@pytest.mark.parametrize("key", [SECRET, SecretStr(SECRET), ApiKeySecret(SECRET)])
def test_api_keys_are_given_and_found_in_plain_text_or_as_secrets(key: Any) -> None:
    config = TaskiqFlowConfig(jwt_secret=SECRET, api_keys={key: ENTRY})
    for found in (SECRET, SecretStr(SECRET), ApiKeySecret(SECRET)):
        assert config.api_keys[found].role  # type: ignore[index]  # which is equal, and hides it
        assert found in config.api_keys
    assert SecretStr("another") not in config.api_keys
    assert TaskiqFlowConfig(jwt_secret=SECRET, api_keys=config.api_keys).api_keys == config.api_keys


def test_secrets_are_read_from_their_variables_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKIQ_FLOW_JWT_SECRET", SECRET)
    monkeypatch.setenv("TASKIQ_FLOW_API_KEYS", json.dumps({SECRET: ENTRY}))
    monkeypatch.setenv(
        "TASKIQ_FLOW_SIGNING_KEYS", json.dumps([{"kid": "k", "alg": "HS256", "uses": ["send"], "secret": SECRET}])
    )
    config = TaskiqFlowConfig()
    assert config.jwt_secret is not None
    assert config.jwt_secret.get_secret_value() == SECRET
    assert [key.get_secret_value() for key in config.api_keys] == [SECRET]
    assert config.api_keys[SECRET].role  # type: ignore[index]  # which equals a plain key, and hides it
    assert "another" not in config.api_keys
    for shown in (repr(config), str(config), config.model_dump_json(), repr(config.model_dump())):
        assert SECRET not in shown


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a short secret": ({"jwt_secret": "short"}, "jwt_secret: must be at least 32 bytes"),
    "an unknown provider": ({"auth_provider": "ldap"}, "auth_provider: "),
    "an unknown permission in an ACL": ({"pipeline_acls": {"a": {"write": ["x"]}}}, "pipeline_acls.a.write"),
    "an ACL for all": ({"pipeline_acls": {"*": {"read": ["x"]}}}, "pipeline_acls: "),
    "an ACL for all roles": ({"pipeline_acls": {"a": {"read": ["*"]}}}, "pipeline_acls: "),
    "an ACL for a task among those for pipelines": ({"pipeline_acls": {"task:t": {"read": ["x"]}}}, "task_acls"),
    "an ACL without a name": ({"task_acls": {"": {"read": ["x"]}}}, "task_acls: "),
    "a limit for all pipelines": ({"pipeline_rate_limits": {"*": "1/hour"}}, "pipeline_rate_limits: "),
    "a limit for a task among those for pipelines": (
        {"pipeline_rate_limits": {"task:t": "1/hour"}},
        "task_rate_limits",
    ),
    "a limit for a task that is named as a resource": ({"task_rate_limits": {"task:t": "1/hour"}}, 'without "task:"'),
    "a proxy that is no address": ({"trusted_proxies": ["proxy.example.com"]}, "trusted_proxies.0: is not an address"),
    "an origin without a scheme": ({"websocket_origins": ["app.example.com"]}, "websocket_origins.0: is not an origin"),
    "a store that is no Redis": ({"shared_store": "memcached://host"}, "shared_store: must be"),
    "roles that are no list": ({"task_acls": {"t": {"read": "x"}}}, "task_acls.t.read"),
    "a limit that is none": (
        {"rate_limit_default": "often"},
        'rate_limit_default: is not a rate limit; write it like "100',
    ),
    "a misspelt setting": ({"jwt_secrets": SECRET}, "jwt_secrets: is not known"),
    "an API key without a role": ({"api_keys": {SECRET: {}}}, "api_keys.<key>.role: is required"),
    "an API key with a field that is none, and may be a key": (
        {"api_keys": {"api_keys": {SECRET: {"role": "x"}}}},
        "api_keys.<key>.<field>: is not known",
    ),
    "an API key with an unknown permission": (
        {"api_keys": {SECRET: {"role": "x", "permissions": ["fly"]}}},
        "api_keys.<key>.permissions.0",
    ),
    "an empty API key": ({"api_keys": {"": ENTRY}}, "api_keys: an API key must not be empty"),
    "a hash that is none": ({"api_keys": {"sha256:x": ENTRY}}, "api_keys: a hashed API key"),
    "an expiry without a time zone": (
        {"api_keys": {SECRET: {**ENTRY, "expires_at": "2027-01-01T00:00:00"}}},
        "api_keys.<key>.expires_at",
    ),
    "an algorithm that nobody has": (
        {"signing_keys": [{"kid": "k", "alg": "none", "uses": ["issue"]}]},
        "signing_keys.0.alg",
    ),
    "a key without its secret": ({"signing_keys": [{"kid": "k", "alg": "HS256", "uses": ["issue"]}]}, "signing_keys.0"),
    "a key with a short secret": (
        {"signing_keys": [{"kid": "k", "alg": "HS256", "uses": ["issue"], "secret": "short"}]},
        "signing_keys.0: must be at least 32 bytes",
    ),
    "a key for nothing": (
        {"signing_keys": [{"kid": "k", "alg": "HS256", "uses": [], "secret": SECRET}]},
        "signing_keys.0.uses",
    ),
    "a key that ends before it begins": (
        {
            "signing_keys": [
                {
                    "kid": "k",
                    "alg": "HS256",
                    "uses": ["issue"],
                    "secret": SECRET,
                    "not_before": "2027-01-02T00:00:00Z",
                    "not_after": "2027-01-01T00:00:00Z",
                }
            ]
        },
        "signing_keys.0: not_before must be earlier",
    ),
    "two keys of one name": (
        {"signing_keys": [{"kid": "k", "alg": "HS256", "uses": ["issue"], "secret": SECRET}] * 2},
        "signing_keys: each kid must be used once",
    ),
    "principals that expire first": ({"principal_ttl": 10, "queue_ttl": 20}, "principal_ttl must be longer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_one_error_that_names_it_and_shows_no_secret(name: str) -> None:
    settings, expected = WRONG[name]
    with pytest.raises(ConfigurationError) as problem:
        TaskiqFlowConfig(**settings)
    error = problem.value
    assert expected in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert SECRET not in str(error) + repr(error)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError) as problem:
        TaskiqFlowConfig(jwt_secret="short", auth_provider="ldap", rate_limit_default="often")
    for name in ("jwt_secret", "auth_provider", "rate_limit_default"):
        assert f"\n  {name}: " in str(problem.value)


def test_a_variable_that_is_no_json_is_an_error_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKIQ_FLOW_API_KEYS", f'{{"{SECRET}": ')
    with pytest.raises(ConfigurationError, match=r"api_keys.*valid JSON") as problem:
        TaskiqFlowConfig()
    assert SECRET not in f"{problem.value!r} {problem.value.__cause__!r} {problem.value.__context__!r}"


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no key at all": ({}, "signing_keys: there is no key for issue and send that can be used now; set jwt_secret"),
    "no key to verify principals with": (
        {"signing_keys": [{"kid": "k", "alg": "HS256", "uses": ["send"], "secret": SECRET}]},
        "there is no key for issue",
    ),
    "JWT without a key for it": (
        {
            "auth_provider": "jwt",
            "signing_keys": [{"kid": "k", "alg": "HS256", "uses": ["issue", "send"], "secret": SECRET}],
        },
        'auth_provider: "jwt" needs a key',
    ),
    "a store that does not exist": ({"jwt_secret": SECRET, "rate_limit_storage": "nonsense://x"}, "rate_limit_storage"),
    "a private key that is none": (
        {"signing_keys": [{"kid": "k", "alg": "EdDSA", "uses": ["send"], "private_key": "no key"}]},
        "signing_keys: private_key of 'k' cannot be used with EdDSA",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_settings_that_secure_nothing_are_refused_at_the_start(name: str) -> None:
    settings, expected = UNUSABLE[name]
    with pytest.raises(ConfigurationError) as problem:
        FlowSecurity(TaskiqFlowConfig(**settings))
    assert expected in str(problem.value)
    assert SECRET not in str(problem.value)


def test_a_key_that_is_given_twice_is_refused() -> None:
    same = {"alice": ENTRY, f"sha256:{hashlib.sha256(b'alice').hexdigest()}": ENTRY}
    with pytest.raises(ConfigurationError, match="api_keys: a key is given twice"):
        FlowSecurity(TaskiqFlowConfig(jwt_secret=SECRET, api_keys=same))


def test_what_weakens_security_is_said_loudly_and_once(caplog: pytest.LogCaptureFixture) -> None:
    weak: list[tuple[dict[str, Any], str]] = [
        ({"security_enabled": False}, "security_enabled is False"),
        ({"jwt_secret": SECRET, "enforcement": "monitor"}, "monitor"),
        *(
            ({"jwt_secret": SECRET, name: True}, name)
            for name in TaskiqFlowConfig.model_fields
            if name.startswith("unsafe_")
        ),
        ({"jwt_secret": SECRET, "api_keys": {"short": ENTRY}}, "fewer than"),
    ]
    for settings, expected in weak:
        caplog.clear()
        FlowSecurity(TaskiqFlowConfig(**settings))
        [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert expected in record.getMessage()


def test_settings_cannot_be_changed_later() -> None:
    config = TaskiqFlowConfig(jwt_secret=SECRET)
    with pytest.raises(ValueError, match="frozen"):
        config.enforcement = "monitor"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        FlowSecurity(config).monitoring = True  # type: ignore[misc]
