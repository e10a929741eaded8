"""All settings, from fields or ``TASKIQ_FLOW_*`` environment variables, checked once at start-up."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from taskiq_flow_security.environment import PREFIX, Variables, warn_of_unknown
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.setting_types import (
    ApiKeySecret,
    ApiKeyText,
    Names,
    Network,
    Origin,
    Permissions,
    PipelineAcls,
    PipelineLimits,
    RateLimit,
    TaskAcls,
    TaskLimits,
    check_hashed_api_key,
    check_hs256_secret,
    explain,
)

IN_MEMORY = "memory://"
"""As `shared_store`: in the memory of each process."""

Algorithm = Literal["HS256", "EdDSA", "ES256", "RS256"]
KeyUse = Literal["issue", "send", "fire", "verify"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiKeyConfig(_Strict):
    """What one API key stands for."""

    role: str = Field(min_length=1)
    pipelines: Names = []
    """The whitelist of pipelines; empty or containing ``"*"`` means all."""
    permissions: Permissions = []
    expires_at: AwareDatetime | None = None
    """From this moment on the key is refused."""
    rate_limits: dict[str, RateLimit] = {}
    """By endpoint, for this key, instead of what its role or the endpoint has."""
    subject: str | None = Field(default=None, min_length=1)
    """The subject of its principals; ``api-key:<id>`` by default."""


class ServiceConfig(_Strict):
    """What a service may do that acts in its own name."""

    roles: Names = []
    pipelines: Names = []
    """The whitelist of pipelines; empty or containing ``"*"`` means all."""
    permissions: Permissions | None = None
    """``None`` leaves it to the ACLs what its roles may do."""


class SigningKeyConfig(_Strict):
    """A key for principals (`issue`), for messages (`send`), or for what schedules send and nothing else (`fire`).

    `uses` says what a signature by this key is accepted for. A process signs with it too if it holds the secret or the
    private key. With `verify` alone it signs nothing, and accepts principals and messages; beside other uses that says
    nothing more, as what a key signs it verifies too.
    """

    kid: str = Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")
    alg: Algorithm
    uses: Annotated[frozenset[KeyUse], Field(min_length=1)]
    secret: SecretStr | None = None
    """For HS256, at least 32 bytes."""
    private_key: SecretStr | None = None
    """PEM, for all others, where this process signs."""
    public_key: str | None = None
    """PEM, for all others, where this process only verifies."""
    not_before: AwareDatetime | None = None
    not_after: AwareDatetime | None = None

    @model_validator(mode="after")
    def _check(self) -> SigningKeyConfig:
        given = [name for name in ("secret", "private_key", "public_key") if getattr(self, name) is not None]
        usable = ["secret"] if self.alg == "HS256" else ["private_key", "public_key"]
        if len(given) != 1 or given[0] not in usable:
            raise ValueError(f"a key for {self.alg} needs exactly one of: {', '.join(usable)}")
        if self.secret is not None:
            check_hs256_secret(self.secret)
        if self.not_before and self.not_after and self.not_before >= self.not_after:
            raise ValueError("not_before must be earlier than not_after")
        return self


class TaskiqFlowConfig(BaseSettings):
    """The settings. Each field is read from ``TASKIQ_FLOW_<NAME>`` if it is not given; lists and mappings as JSON.

    Raises `ConfigurationError` naming every field that is wrong, and how to mend it.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        case_sensitive=False,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    security_enabled: bool = True
    enforcement: Literal["enforce", "monitor"] = "enforce"
    """``monitor`` only records what would be refused, and lets it run: for the roll-out."""

    # Authentication
    auth_provider: Literal["api_key", "jwt"] = "api_key"
    """What callers mainly log in with; ``jwt`` must be configured. Every credential that is configured is accepted."""
    api_keys: dict[ApiKeyText, ApiKeyConfig] = {}
    """By key, in plain text or as ``sha256:<hex>`` of it."""
    jwt_secret: SecretStr | None = None
    """Verifies HS256 bearer tokens; without `signing_keys`, keys for principals and messages are derived from it."""
    jwt_public_keys: list[str] = []
    """PEM public keys that verify bearer tokens; the type of a key fixes its algorithm."""
    jwt_jwks_file: Path | None = None
    """A JWK set (RFC 7517) with public keys that verify bearer tokens."""
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    unsafe_jwt_without_exp: bool = False
    """Accept bearer tokens that never expire."""

    # Principals and messages
    signing_keys: list[SigningKeyConfig] = []
    """The first usable key signs, all verify. Rotate by putting the new key first."""
    principal_issuer: str = Field(default="taskiq-flow-security", min_length=1)
    principal_audience: str = Field(default="taskiq-flow", min_length=1)
    """Name the environment here, so that no other environment's principals are accepted."""
    principal_ttl: float = Field(default=172_800, gt=0, le=31_536_000)
    """Seconds for which an issued principal is accepted; longer than `queue_ttl`."""
    queue_ttl: float = Field(default=86_400, gt=0, le=31_536_000)
    """Seconds that a message may wait before it runs; a task's label ``queue_ttl`` overrides it."""
    schedule_ttl: float = Field(default=2_592_000, gt=0, le=31_536_000)
    """Seconds for which a schedule may fire, however long the login of who made it lasts; then it is made anew."""
    max_delegation_depth: int = Field(default=32, ge=1)
    """How many tasks may have kicked one another, each from its function, before a kick is denied."""
    unsafe_allow_replays: bool = False
    """Let a message run as often as it is delivered until it expires."""
    unsafe_allow_unchecked: bool = False
    """Let messages run while `shared_store`, which knows what has run before, is away."""
    unsafe_pickle_messages: bool = False
    """Let the broker's serializer be pickle, which runs code before anything can be verified."""
    clock_leeway: float = Field(default=10, ge=0, le=300)
    """Seconds by which clocks may differ."""

    # Authorization
    services: dict[Annotated[str, Field(min_length=1)], ServiceConfig] = {}
    """By name, those that may act in their own name: `FlowSecurity.service`."""
    pipeline_acls: PipelineAcls = {}
    task_acls: TaskAcls = {}

    # Rate limits
    rate_limit_enabled: bool = True
    rate_limit_default: RateLimit = "100/minute"
    """For endpoints that have no limit of their own."""
    rate_limits: dict[str, RateLimit] = {}
    """By endpoint, instead of the built-in ones."""
    role_rate_limits: dict[str, dict[str, RateLimit]] = {}
    """By role, then by endpoint, instead of both; the most generous one of the caller's roles counts."""
    task_rate_limits: TaskLimits = {}
    """By task: how often each principal may kick it, beside what its `@guard` says."""
    pipeline_rate_limits: PipelineLimits = {}
    """By pipeline: how often each principal may kick its tasks. The steps that follow from a kick do not count."""
    principal_rate_limit: RateLimit | None = None
    """How often each principal may kick anything."""
    rate_limits_on_workers: bool = False
    """Count what runs on workers, too, retries and the steps of pipelines included, by the same limits as kicks."""
    rate_limit_failed_logins: RateLimit = "20/minute"
    """For each client address."""
    rate_limit_storage: SecretStr = SecretStr("memory://")
    """A storage URL of the `limits` package; ``redis://...`` shares the counters between processes."""
    unsafe_allow_uncounted: bool = False
    """Let requests, kicks and tasks pass while the storage of the rate limits is away."""

    # HTTP edge
    require_https: bool = True
    hsts_max_age: int = Field(default=31_536_000, ge=0)
    """Seconds for which browsers keep to HTTPS; 0 sends no header."""
    trusted_proxies: list[Network] = ["127.0.0.0/8", "::1"]
    """Addresses and networks whose ``X-Forwarded-*`` headers count; ``unix`` for Unix domain sockets."""
    websocket_require_auth: bool = True
    websocket_max_connections: int = Field(default=1000, ge=1)
    """In one process. For clients that have yet to log in by a first message there are a tenth as many places more."""
    websocket_auth_timeout: float = Field(default=10, gt=0, le=300)
    """Seconds in which a client without credentials in its handshake must send them."""
    websocket_max_message_size: int = Field(default=65_536, ge=1024)
    """Bytes of a client's message, at most."""
    websocket_origins: list[Origin] = []
    """Origins of web pages that may connect, beside the one that the API itself is served from."""

    # Audit
    audit_file: Path | None = None
    """Append audit events to this file as JSON lines, beside the logger ``taskiq_flow.audit``."""

    # What processes share
    shared_store: SecretStr = SecretStr(IN_MEMORY)
    """Where it is kept what has run, what is changed at run time, and runs with their events; ``redis://...`` (extra
    ``redis``) shares it between processes."""
    policy_max_age: float = Field(default=300, gt=0)
    """Seconds for which a process that cannot read the newest policy keeps to the last one; then it denies all."""

    def __init__(self, **values: Any) -> None:
        problem = None
        warn_of_unknown(set(type(self).model_fields))
        try:
            super().__init__(**values)
        except ValidationError as error:
            problem = explain(error)
        except SettingsError as error:
            problem = f"{error}: the variable must hold valid JSON, no null, in which no name stands twice"
        if problem is not None:
            # Raised out here so that it does not carry its origin along, which quotes keys and values.
            raise ConfigurationError(problem)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Fields come first, then environment variables; nothing else is read."""
        return init_settings, Variables(settings_cls)

    @field_validator("jwt_secret")
    @classmethod
    def _check_jwt_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        return None if secret is None else check_hs256_secret(secret)

    @field_validator("api_keys")
    @classmethod
    def _check_api_keys(cls, keys: dict[ApiKeySecret, ApiKeyConfig]) -> dict[ApiKeySecret, ApiKeyConfig]:
        for key in map(SecretStr.get_secret_value, keys):
            if not key:
                raise ValueError("an API key must not be empty")
            check_hashed_api_key(key)
        return keys

    @field_validator("shared_store")
    @classmethod
    def _check_shared_store(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() != IN_MEMORY and not re.match(r"(rediss?|unix)://", url.get_secret_value()):
            raise ValueError('must be "memory://" or the URL of a Redis server, such as "redis://host:6379/0"')
        return url

    @field_validator("signing_keys")
    @classmethod
    def _check_signing_keys(cls, keys: list[SigningKeyConfig]) -> list[SigningKeyConfig]:
        kids = [key.kid for key in keys]
        if len(set(kids)) != len(kids):
            raise ValueError("each kid must be used once: a key has one algorithm")
        return keys

    @model_validator(mode="after")
    def _check_ttls(self) -> TaskiqFlowConfig:
        if self.principal_ttl <= self.queue_ttl:
            raise ValueError("principal_ttl must be longer than queue_ttl, or principals expire before their messages")
        return self


def timestamp(moment: datetime | None) -> float | None:
    """Seconds since the epoch of a moment with a time zone."""
    return None if moment is None else moment.timestamp()
