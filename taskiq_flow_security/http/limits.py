"""How often each endpoint may be used, and by whom it is counted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from limits import parse_many

from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.credentials import ApiKeys
from taskiq_flow_security.errors import RateLimitExceededError
from taskiq_flow_security.http.clients import Client
from taskiq_flow_security.live_policy import LivePolicy
from taskiq_flow_security.rate_limits import Hit, RateLimits

_logger = logging.getLogger(__name__)

DEFAULTS = {
    "list_pipelines": "60/minute",
    "get_dag": "120/minute",
    "get_critical_path": "120/minute",
    "get_parallel_groups": "120/minute",
    "execute_pipeline": "10/minute",
    "get_status": "30/minute",
    "websocket_connect": "5/minute",
    "visualization_page": "600/minute",
}
"""The limits that the guide names, and one for the files of the page, all of which each look at it needs; all other
endpoints have `rate_limit_default`.
"""

WEBSOCKET_LOGIN = "websocket_login"
"""The endpoint that handshakes without credentials are counted by, for each address."""
WEBSOCKET_SUBSCRIBE = "websocket_subscribe"
"""The endpoint that messages naming pipelines are counted by."""

_REMEMBERED = 65_536
"""How many addresses are known to have failed too often, at most."""


class EndpointLimits:
    """Counts requests by endpoint and principal, or by endpoint and client where there is no principal.

    What counts for a request is, in this order: the limit of its API key, of its caller's roles, of the endpoint, of
    the endpoint by default, `rate_limit_default`; all but those of API keys can be changed at run time.
    """

    def __init__(
        self,
        config: TaskiqFlowConfig,
        limits: RateLimits,
        api_keys: ApiKeys,
        live: LivePolicy,
        endpoints: Iterable[str],
    ) -> None:
        self._limits = limits
        self._api_keys = api_keys
        self._live = live
        self._most_generous = lru_cache(maxsize=1024)(_most_generous)
        known = {*endpoints, *DEFAULTS, WEBSOCKET_LOGIN, WEBSOCKET_SUBSCRIBE}
        named = {
            "rate_limits": set(config.rate_limits),
            "role_rate_limits": {endpoint for limits in config.role_rate_limits.values() for endpoint in limits},
            "api_keys.<key>.rate_limits": {
                endpoint for key in config.api_keys.values() for endpoint in key.rate_limits
            },
        }
        for setting, names in named.items():
            if unknown := names - known:  # it may be another application's, that has the same settings
                _logger.warning(
                    "%s: no rule of this application has the endpoint %s; its endpoints are %s.",
                    *(setting, ", ".join(sorted(unknown)), ", ".join(sorted(known))),
                )

    def count(self, endpoint: str, principal: Principal | None, client: Client) -> Awaitable[None]:
        """Count one request, when it is awaited. Raises as `RateLimits.hit`."""
        who = ("client", client.network) if principal is None else ("principal", principal.subject)
        return self._limits.hit(self._limit(endpoint, principal), "endpoint", endpoint, *who, name=endpoint)

    def at_once(self, endpoint: str, principal: Principal) -> Callable[[], None] | None:
        """What counts such a request as long as the same is in force, as `RateLimits.at_once`."""
        who = "endpoint", endpoint, "principal", principal.subject
        return self._limits.at_once(Hit(self._limit(endpoint, principal), who, endpoint))

    def _limit(self, endpoint: str, principal: Principal | None) -> str:
        in_force = self._live.in_force
        if principal is not None:
            key = None if principal.api_key_id is None else self._api_keys.find(principal.api_key_id)
            if key is not None and endpoint in key.rate_limits:
                return key.rate_limits[endpoint]
            if by_role := in_force.role_rate_limits:
                theirs = [by_role[role] for role in principal.roles if role in by_role]
                if limits := frozenset(limits[endpoint] for limits in theirs if endpoint in limits):
                    return self._most_generous(limits)
        return in_force.rate_limits.get(endpoint) or DEFAULTS.get(endpoint, in_force.rate_limit_default)


class _ShutOut(NamedTuple):
    """Until when somebody is, and what the error says of it; the error itself would keep its frames, and their keys."""

    until: float
    said: tuple[Any, ...]


class FailedLogins:
    """Counts failed logins by client address, and shuts out who has failed too often, right credentials or not."""

    def __init__(self, config: TaskiqFlowConfig, limits: RateLimits) -> None:
        self._limit = config.rate_limit_failed_logins
        self._limits = limits
        self._shut_out: dict[str, _ShutOut] = {}

    def check(self, client: Client, now: float) -> None:
        """Raise `RateLimitExceededError` for a client that is shut out."""
        if not self._shut_out:
            return  # nobody is, mostly
        shut_out = self._shut_out.get(client.network)
        if shut_out is None:
            return
        if now < shut_out.until:
            raise RateLimitExceededError(shut_out.until - now, *shut_out.said)
        self._shut_out.pop(client.network, None)

    async def count(self, client: Client, now: float) -> None:
        """Count a failed login. Raises as `RateLimits.hit`."""
        try:
            await self._limits.hit(self._limit, "failed_login", client.network, name="failed_logins")
        except RateLimitExceededError as error:
            if len(self._shut_out) >= _REMEMBERED:
                self._shut_out.pop(next(iter(self._shut_out)))
            self._shut_out[client.network] = _ShutOut(now + error.retry_after, error.args[1:])
            raise


def _most_generous(limits: frozenset[str]) -> str:
    """The limit that lets most requests through, by the tightest of the rates that each is made of."""
    return max(sorted(limits), key=lambda limit: min(item.amount / item.get_expiry() for item in parse_many(limit)))
