"""The kinds of values that settings are made of, here and where they are changed at run time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Annotated, TypeVar

from limits import parse_many
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError

from taskiq_flow_security.core.policy import ENDPOINT_PREFIX, TASK_PREFIX
from taskiq_flow_security.core.principal import ALL_PIPELINES, Permission

V = TypeVar("V")

MIN_HS256_SECRET_BYTES = 32
"""RFC 7518 section 3.2: a key of at least the size of the hash output."""

_HASHED_API_KEY = re.compile(r"sha256:[0-9a-f]{64}")

UNIX_SOCKET = "unix"
"""Stands for whoever connects through a Unix domain socket."""


def check_hs256_secret(secret: SecretStr) -> SecretStr:
    """Raise `ValueError` for a secret that is too short to be a key."""
    if len(secret.get_secret_value().encode()) < MIN_HS256_SECRET_BYTES:
        raise ValueError(
            f"must be at least {MIN_HS256_SECRET_BYTES} bytes long (RFC 7518 section 3.2); "
            'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return secret


def check_hashed_api_key(key: str) -> None:
    """Raise `ValueError` for what begins like a hashed API key and is none."""
    if key.startswith("sha256:") and not _HASHED_API_KEY.fullmatch(key):
        raise ValueError('a hashed API key is "sha256:" and 64 lower-case hexadecimal digits')


class ApiKeySecret(SecretStr):
    """An API key as the settings name it. It is found by its plain text, which it does not show."""

    def __eq__(self, other: object) -> bool:
        return self.get_secret_value() == (other.get_secret_value() if isinstance(other, SecretStr) else other)

    __hash__ = SecretStr.__hash__


def _revealed(key: object) -> object:
    return key.get_secret_value() if isinstance(key, SecretStr) else key


ApiKeyText = Annotated[ApiKeySecret, BeforeValidator(_revealed)]
"""A key in plain text or as any kind of secret."""


def _check_rate_limit(limit: str) -> str:
    try:
        parse_many(limit)
    except ValueError:
        raise ValueError('is not a rate limit; write it like "100/minute" or "10/second"') from None
    return limit


RateLimit = Annotated[str, AfterValidator(_check_rate_limit)]
"""In the notation of the `limits` package, such as ``"10/minute"`` or ``"10/second;100/hour"``."""


def _check_network(network: str) -> str:
    if network == UNIX_SOCKET:
        return network
    try:
        ip_network(network)
    except ValueError:
        raise ValueError(f'is not an address or network such as "10.0.0.0/8", nor "{UNIX_SOCKET}"') from None
    return network


def _check_origin(origin: str) -> str:
    if not re.fullmatch(r"https?://[^/?#\s]+", origin):
        raise ValueError('is not an origin; write it like "https://app.example.com"')
    return origin.lower()


Network = Annotated[str, AfterValidator(_check_network)]
"""An address or a network, or ``unix`` for Unix domain sockets."""

Origin = Annotated[str, AfterValidator(_check_origin)]
"""Of a web page: scheme, host and port."""


def check_roles(roles: Iterable[str]) -> Iterable[str]:
    """Raise `ValueError` for what looks like a role and would be none."""
    if ALL_PIPELINES in roles:
        raise ValueError('"*" is not a role; list each role by its name')
    return roles


def _as_list(value: object) -> object:
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return value


Permissions = Annotated[list[Permission], BeforeValidator(_as_list)]
Names = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)]
AclConfig = dict[Permission, Names]


def _check_name(name: str) -> None:
    if name in ("", ALL_PIPELINES):
        raise ValueError(f'"{name}" is not a name; name one pipeline or task')


def _check_pipelines(by_pipeline: dict[str, V]) -> dict[str, V]:
    for name in by_pipeline:
        _check_name(name)
        if name.startswith(TASK_PREFIX):
            raise ValueError(f'"{name}" is a task; name it in task_acls or task_rate_limits, without "{TASK_PREFIX}"')
        if name.startswith(ENDPOINT_PREFIX):
            raise ValueError(f'"{name}" is an endpoint; only pipelines and tasks can be named')
    return by_pipeline


def _check_tasks(by_task: dict[str, V]) -> dict[str, V]:
    for name in by_task:
        _check_name(name)
        if name.startswith(TASK_PREFIX):
            raise ValueError(f'name the task without "{TASK_PREFIX}": "{name.removeprefix(TASK_PREFIX)}"')
    return by_task


def _check_acls(acls: dict[str, AclConfig]) -> dict[str, AclConfig]:
    for acl in acls.values():
        for roles in acl.values():
            check_roles(roles)
    return acls


PipelineAcls = Annotated[dict[str, AclConfig], AfterValidator(_check_pipelines), AfterValidator(_check_acls)]
TaskAcls = Annotated[dict[str, AclConfig], AfterValidator(_check_tasks), AfterValidator(_check_acls)]
PipelineLimits = Annotated[dict[str, RateLimit], AfterValidator(_check_pipelines)]
TaskLimits = Annotated[dict[str, RateLimit], AfterValidator(_check_tasks)]


_HINTS = {
    "extra_forbidden": "is not known; check the spelling",
    "missing": "is required",
}


def explain(error: ValidationError, what: str = "configuration") -> str:
    """One line for each problem of this: the field and the mend, never the value, which may be a secret."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(_location(problem["loc"], problem["type"])) or what
        text = _HINTS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        lines.append(f"{field}: {text}")
    return f"The {what} is not usable.\n  " + "\n  ".join(lines)


def _location(location: tuple[int | str, ...], problem: str) -> Iterable[str]:
    parts = [str(part) for part in location]
    if parts and parts[0].lower() == "api_keys" and len(parts) > 1:
        parts[1] = "<key>"  # the location of a problem in a mapping is its key, here a secret
        if problem == "extra_forbidden" and len(parts) > 2:
            parts[-1] = "<field>"  # which may be a key, put one level too deep
    return parts
