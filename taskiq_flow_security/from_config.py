"""Makes of the configuration what it stands for, or says what is wrong with it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from pydantic import SecretStr

from taskiq_flow_security.audit import AuditFile, AuditLogger
from taskiq_flow_security.config import IN_MEMORY, TaskiqFlowConfig, timestamp
from taskiq_flow_security.credentials import (
    ApiKey,
    ApiKeys,
    BearerKey,
    BearerTokens,
    bearer_key_from_pem,
    bearer_keys_from_jwks,
)
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.live_policy import LivePolicy
from taskiq_flow_security.live_policy.stores import MemoryPolicyStore
from taskiq_flow_security.replay import MemoryReplays, ReplayStores
from taskiq_flow_security.runs.events import RunEvents
from taskiq_flow_security.runs.memory import MemoryRunEvents, MemoryRunStore
from taskiq_flow_security.runs.records import RunStore
from taskiq_flow_security.runs.signatures import RunSignatures
from taskiq_flow_security.tokens.keyring import Keyring
from taskiq_flow_security.tokens.keys import KeySpec, Use

_logger = logging.getLogger(__name__)

_MIN_API_KEY_LENGTH = 20

_VERIFIED = frozenset({Use.ISSUE, Use.SEND})
"""What a key is believed in that is only said to verify."""

_REMEMBERED = 1_000_000
"""How many messages a process remembers at most, some hundred bytes each."""
_REMEMBERED_BESIDE_REDIS = 100_000
"""The same, where Redis remembers all."""

_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
"""What every client and server passes on as it is (RFC 9110 section 5.5)."""


def api_keys(config: TaskiqFlowConfig) -> ApiKeys:
    """The API keys. Raises `ConfigurationError` for a key that is given twice."""
    found = [
        ApiKey.parse(
            key.get_secret_value(),
            subject=entry.subject,
            roles=[entry.role],
            permissions=entry.permissions,
            pipelines=entry.pipelines,
            expires_at=timestamp(entry.expires_at),
            rate_limits=entry.rate_limits,
        )
        for key, entry in config.api_keys.items()
    ]
    if len({key.id for key in found}) != len(found):
        raise ConfigurationError("api_keys: a key is given twice, in plain text and hashed; keep one of them.")
    guessable = [key for key in config.api_keys if len(key.get_secret_value()) < _MIN_API_KEY_LENGTH]
    if guessable:
        _logger.warning(
            "%d API keys have fewer than %d characters and can be guessed; make them with secrets.token_urlsafe().",
            len(guessable),
            _MIN_API_KEY_LENGTH,
        )
    unsendable = [key for key in map(SecretStr.get_secret_value, config.api_keys) if not _HEADER_VALUE.fullmatch(key)]
    if unsendable:
        _logger.warning(
            "%d API keys cannot be sent in a header, where only ASCII without spaces around it arrives as it is; look "
            "for a line break at the end.",
            len(unsendable),
        )
    return ApiKeys(found)


def bearer_tokens(config: TaskiqFlowConfig) -> BearerTokens:
    """What verifies bearer tokens. Raises `ConfigurationError` for a key that cannot, or where one is missing."""
    keys = [bearer_key_from_pem(pem) for pem in config.jwt_public_keys]
    if config.jwt_jwks_file is not None:
        keys += bearer_keys_from_jwks(config.jwt_jwks_file)
    if config.jwt_secret is not None:
        keys.append(BearerKey("HS256", config.jwt_secret.get_secret_value()))
    if config.security_enabled and config.auth_provider == "jwt" and not keys:
        raise ConfigurationError(
            'auth_provider: "jwt" needs a key to verify tokens; set jwt_secret, jwt_public_keys or jwt_jwks_file.'
        )
    return BearerTokens(
        keys,
        audience=config.jwt_audience,
        issuer=config.jwt_issuer,
        require_exp=not config.unsafe_jwt_without_exp,
        leeway=config.clock_leeway,
    )


def audit(config: TaskiqFlowConfig, given: AuditLogger | None) -> AuditLogger:
    """Where decisions are recorded. Raises `ConfigurationError` if the file cannot be written to, or would not be."""
    if given is not None and config.audit_file is not None:
        raise ConfigurationError(
            "audit_file: is set, and another AuditLogger is given, which does not write there; give it the file: "
            "AuditLogger(sinks=[AuditFile(path)])."
        )
    return given or AuditLogger(sinks=[] if config.audit_file is None else [AuditFile(config.audit_file)])


def _reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def keyring(config: TaskiqFlowConfig, now: float) -> Keyring:
    """Keys for principals and messages. Raises `ConfigurationError` for one that is unusable or missing `now`."""
    if config.signing_keys:
        keys = Keyring.from_specs(
            KeySpec(
                kid=key.kid,
                alg=key.alg,
                uses=frozenset(map(Use, key.uses - {"verify"})) or _VERIFIED,
                secret=_reveal(key.secret),
                private_key=_reveal(key.private_key),
                public_key=key.public_key,
                verify_only=key.uses == {"verify"},
                not_before=timestamp(key.not_before),
                not_after=timestamp(key.not_after),
            )
            for key in config.signing_keys
        )
    elif config.jwt_secret is not None:
        keys = Keyring.derived(config.jwt_secret.get_secret_value())
    else:
        keys = Keyring([])
    missing = [use for use in (Use.ISSUE, Use.SEND) if not keys.has(use, now, config.clock_leeway)]
    if config.security_enabled and missing:
        raise ConfigurationError(
            f"signing_keys: there is no key for {' and '.join(missing)} that can be used now; "
            "set jwt_secret (at least 32 bytes, the same in every process), or give signing_keys for both, or set "
            "security_enabled to false."
        )
    return keys


def runs(config: TaskiqFlowConfig, keyring: Keyring, clock: Callable[[], float]) -> tuple[RunStore, RunEvents]:
    """Where runs are kept, and what carries their events. Raises `ConfigurationError` if that cannot be used."""
    url = _shared_store(config)
    if url is None:
        return MemoryRunStore(), MemoryRunEvents()
    from taskiq_flow_security.runs.redis import RedisRunEvents, RedisRunStore
    from taskiq_flow_security.stores.redis import RedisKeys

    names = RedisKeys(config.principal_audience)
    signatures = RunSignatures(keyring, config.principal_audience, config.clock_leeway)
    return RedisRunStore(url, names, signatures, clock), RedisRunEvents(url, names, signatures, clock)


def live_policy(config: TaskiqFlowConfig, keyring: Keyring, clock: Callable[[], float]) -> LivePolicy:
    """What is in force. Raises `ConfigurationError` if it cannot be kept where the settings say."""
    url = _shared_store(config)
    if url is None:
        return LivePolicy(config, keyring, MemoryPolicyStore(), clock)
    from taskiq_flow_security.live_policy.redis import RedisPolicyStore
    from taskiq_flow_security.stores.redis import RedisKeys

    return LivePolicy(config, keyring, RedisPolicyStore(url, RedisKeys(config.principal_audience)), clock)


def replays(config: TaskiqFlowConfig, clock: Callable[[], float]) -> ReplayStores | None:
    """What remembers the messages that have run, unless any may run again.

    Raises `ConfigurationError` if it cannot be used.
    """
    if config.unsafe_allow_replays or not config.security_enabled:
        return None
    # The clocks of two processes may differ by the leeway: that of the one that notes, and of the one that asks.
    margin = 2 * config.clock_leeway
    url = _shared_store(config)
    if url is None:
        return ReplayStores(MemoryReplays(clock, margin, at_most=_REMEMBERED))
    from taskiq_flow_security.replay.redis import RedisReplays
    from taskiq_flow_security.stores.redis import RedisKeys

    own = MemoryReplays(clock, margin, at_most=_REMEMBERED_BESIDE_REDIS)
    return ReplayStores(own, RedisReplays(url, RedisKeys(config.principal_audience), clock, margin))


def _shared_store(config: TaskiqFlowConfig) -> str | None:
    """The URL of the Redis that processes share, if they do. Raises `ConfigurationError` where the extra is missing.

    Without security nothing is shared: there may be no keys, and nothing that comes from a store could be believed.
    """
    url = config.shared_store.get_secret_value()
    if url == IN_MEMORY or not config.security_enabled:
        return None
    try:
        import redis.asyncio  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise ConfigurationError(
            'shared_store: needs the package redis; install the extra: pip install "taskiq-flow-security[redis]"'
        ) from error
    return url
