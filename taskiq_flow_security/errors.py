"""Everything this package raises, one tree under `FlowSecurityError`.

A result backend stores an exception as its class and its positional ``args`` and rebuilds it with
``cls(*args)`` (taskiq 0.13, ``taskiq/serialization.py``), so each error here is rebuilt from its ``args`` alone,
which are plain JSON values. No message ever contains a key, a token or an argument of a task.
"""

from __future__ import annotations

from math import ceil


class FlowSecurityError(Exception):
    """Base of every error of this package."""

    _reason = "internal_error"  # of each kind, a value of `Reason`, which stands a floor above

    @property
    def reason(self) -> str:
        """A stable code, one of `taskiq_flow_security.core.reasons.Reason`."""
        return self._reason


class ConfigurationError(FlowSecurityError):
    """The configuration is wrong or unsafe; the message names each field and the mend."""

    _reason = "misconfigured"


class UnsignableMessageError(FlowSecurityError):
    """A message holds a value that cannot be signed faithfully; nothing was sent."""

    _reason = "unsignable"


class RefusedError(FlowSecurityError):
    """A refusal with a reason of its own; raised as one of the three kinds below."""

    _default = "Refused."

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(str(reason), message or self._default)

    @property
    def reason(self) -> str:
        """As of every error, but given with this one."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.args[1]} (reason: {self.reason})"


class AuthenticationError(RefusedError):
    """Nobody, or nobody who can prove it, is asking."""

    _default = "The caller could not be authenticated."


class AccessDeniedError(RefusedError):
    """The caller is known but may not do this."""

    _default = "The caller may not do this."


class ResultVerificationError(RefusedError):
    """A stored result or progress is not what a worker stored for this task; nothing of it was decoded."""

    _default = "The result could not be verified."


class RateLimitExceededError(FlowSecurityError):
    """The caller has used up a rate limit; try again after `retry_after` seconds."""

    _reason = "rate_limit"

    def __init__(
        self,
        retry_after: float,
        message: str = "The rate limit is exceeded.",
        limit: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(float(retry_after), message, limit, name)

    @property
    def retry_after(self) -> float:
        """Seconds until the next request can succeed."""
        return float(self.args[0])

    @property
    def limit(self) -> str | None:
        """The limit that is used up, in the notation of the `limits` package."""
        limit: str | None = self.args[2]
        return limit

    @property
    def name(self) -> str | None:
        """What is limited: an endpoint, ``failed_logins``, or what a kick is counted by."""
        name: str | None = self.args[3]
        return name

    def __str__(self) -> str:
        return f"{self.args[1]} Try again in {ceil(self.retry_after)} s."


class PolicyConflictError(FlowSecurityError):
    """The policy has been changed by somebody else; read it, and make the change again. Nothing was changed."""

    _reason = "policy_conflict"

    def __init__(self, version: int, message: str = "The policy is another one by now.") -> None:
        super().__init__(int(version), message)

    @property
    def version(self) -> int:
        """The version that is in force."""
        return int(self.args[0])

    def __str__(self) -> str:
        return f"{self.args[1]} It is at version {self.version}."


class BackendUnavailableError(FlowSecurityError):
    """A store that a decision needs cannot be reached; the request is denied."""

    _reason = "backend_unavailable"
