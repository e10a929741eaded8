"""Who may change the policy at run time, and what is recorded of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import ceil

from taskiq_flow_security.audit import AuditLogger
from taskiq_flow_security.core.events import AuditEvent, EventName, Outcome
from taskiq_flow_security.core.policy import ENDPOINT_PREFIX, AccessRequest, Decision
from taskiq_flow_security.core.principal import Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.credentials import ApiKeys
from taskiq_flow_security.errors import AccessDeniedError, AuthenticationError, BackendUnavailableError
from taskiq_flow_security.live_policy.document import PolicyChange, PolicyDocument, Revocation, differences
from taskiq_flow_security.live_policy.live import LivePolicy
from taskiq_flow_security.live_policy.stored import Edit

_logger = logging.getLogger(__name__)

GET_POLICY = "get_policy"
CHANGE_POLICY = "change_policy"
REVOKE = "revoke"
REINSTATE = "reinstate"
"""What can be done, each an endpoint: it takes `admin` on the resource ``endpoint:revoke``, say."""


class Administration:
    """Changes the policy in the name of principals that carry `admin`, while everything runs.

    A whitelist of pipelines must contain ``endpoint:get_policy``, ``endpoint:change_policy``, ``endpoint:revoke`` or
    ``endpoint:reinstate``. All methods raise `AccessDeniedError` for anybody else, `AuthenticationError` for somebody
    whose login has ended, and what `LivePolicy.change` raises. A change is in force here when they return, and within a
    second wherever the setting `shared_store` is the same. Each thing that is changed is an audit event, which is
    recorded before it is in force.
    """

    def __init__(
        self,
        live: LivePolicy,
        decide: Callable[[Principal, AccessRequest], Decision],
        login_ended: Callable[[Principal], Reason | None],
        api_keys: ApiKeys,
        audit: AuditLogger,
        clock: Callable[[], float],
    ) -> None:
        self._live = live
        self._decide = decide
        self._login_ended = login_ended
        self._api_keys = api_keys
        self._audit = audit
        self._clock = clock

    async def policy(self, admin: Principal) -> PolicyDocument:
        """What has been changed, on top of the settings."""
        await self._require(admin, GET_POLICY)
        return self._live.document

    async def change(self, admin: Principal, change: PolicyChange, *, version: int | None = None) -> PolicyDocument:
        """Change roles, access control lists or limits, all or nothing. The version that is in force then.

        Raises `PolicyConflictError` if `version` is given and another one is in force; `ConfigurationError` for what
        could not be a setting.
        """
        return await self._edit(admin, CHANGE_POLICY, lambda policy: policy.changed(change), version)

    async def revoke(self, admin: Principal, revocation: Revocation) -> PolicyDocument:
        """Refuse an API key, a subject, a token, a signing key, or all tokens issued before a moment, from now on.

        What is queued of the revoked is refused, too. A moment that is still to come counts as now; this returns in the
        next second then, so that what is issued afterwards by others, who count whole seconds, is from after it. A
        signing key has to be removed from the settings as well: whoever stole it can sign a policy for processes that
        start anew.
        """
        now, revocation = self._clock(), self._by_id(revocation)
        if revocation.issued_before is not None:
            revocation = Revocation(issued_before=min(revocation.issued_before, now))
        revoked = await self._edit(
            admin, REVOKE, lambda policy: policy.with_revoked(policy.revoked.at(now).with_(revocation))
        )
        if revocation.api_key is not None and self._api_keys.find(revocation.api_key) is None:
            _logger.warning("No API key of this process has the id that was revoked; those of others may.")
        if revocation.issued_before is not None:
            await asyncio.sleep(max(ceil(revocation.issued_before) - now, 0))
        return revoked

    async def reinstate(self, admin: Principal, revocation: Revocation) -> PolicyDocument:
        """Take a revocation back."""
        revocation = self._by_id(revocation)
        return await self._edit(
            admin, REINSTATE, lambda policy: policy.with_revoked(policy.revoked.at(self._clock()).without(revocation))
        )

    def _by_id(self, revocation: Revocation) -> Revocation:
        """The same, where an API key is named that has itself the form of an id."""
        key = self._api_keys.presented(revocation.api_key)
        return revocation if key is None else Revocation(api_key=key.id, until=revocation.until)

    async def _edit(self, admin: Principal, endpoint: str, edit: Edit, version: int | None = None) -> PolicyDocument:
        await self._require(admin, endpoint)

        def record(old: PolicyDocument, new: PolicyDocument, outcome: Outcome) -> None:
            for difference in differences(old, new):
                revoked = difference.rule.startswith("revoked.") and difference.after is not None
                self._record(
                    admin,
                    endpoint,
                    EventName.AUTHN_TOKEN_REVOKED if revoked else EventName.AUTHZ_CHANGE,
                    outcome,
                    reason=None if outcome is Outcome.ALLOW else Reason.POLICY_CONFLICT,
                    rule=difference.rule,
                    change=f"version {new.version}: {difference}",
                )
            self._audit.flush()

        return await self._live.change(edit, record, version)

    async def _require(self, admin: Principal, endpoint: str) -> None:
        await self._live.catch_up()
        if self._live.stale:
            raise BackendUnavailableError("The policy cannot be read now; try again later.")
        decision = self._decide(admin, AccessRequest(Permission.ADMIN, endpoint=endpoint))
        error: AccessDeniedError | AuthenticationError
        if not decision.allowed:
            error = AccessDeniedError(decision.reason, f"{admin.subject} may not administer the policy.")
        elif (ended := self._login_ended(admin)) is not None:
            error = AuthenticationError(ended, "The login has ended; authenticate again.")
        else:
            return
        rule = None if decision.allowed else decision.rule
        self._record(admin, endpoint, EventName.AUTHZ_FAIL, Outcome.DENY, reason=error.reason, rule=rule)
        raise error

    def _record(
        self,
        admin: Principal,
        endpoint: str,
        event: EventName,
        outcome: Outcome,
        *,
        reason: str | None = None,
        rule: str | None = None,
        change: str | None = None,
    ) -> None:
        self._audit.record(
            AuditEvent(
                event=event,
                time=self._clock(),
                outcome=outcome,
                reason=reason,
                rule=rule,
                policy_hash=self._live.in_force.policy.hash,
                sub=admin.subject,
                roles=admin.roles,
                permission=Permission.ADMIN,
                task=f"{ENDPOINT_PREFIX}{endpoint}",
                txn=admin.txn,
                key_id=admin.api_key_id,
                change=change,
            )
        )
