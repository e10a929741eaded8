"""Claims that more than one kind of token has."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from taskiq_flow_security.core.principal import UNRESTRICTED, Permission, Principal, Scope

Moment = Annotated[float, Field(allow_inf_nan=False)]
"""When something was issued, to the fraction of a second: what was issued before a moment can be revoked."""


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""How long something takes: a number that can be said, counted and rounded."""


class ScopeClaim(BaseModel):
    """What a principal was restricted to, of exactly these types."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    permissions: frozenset[Permission] | None = None
    pipelines: frozenset[str] | None = None

    @classmethod
    def of(cls, scope: Scope) -> ScopeClaim | None:
        """The claim that says a scope, if there is one to be said."""
        return None if scope == UNRESTRICTED else cls(permissions=scope.permissions, pipelines=scope.pipelines)

    def scope(self) -> Scope:
        """The scope that the claim says."""
        return Scope(self.permissions, self.pipelines)


class LoginClaim(BaseModel):
    """The bearer token that a principal comes from, by which it can be revoked."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    jti: str | None = None
    iat: Moment

    @classmethod
    def of(cls, principal: Principal) -> LoginClaim | None:
        """The claim that says it, if it was one."""
        issued_at = principal.token_issued_at
        return None if issued_at is None else cls(jti=principal.token_id, iat=issued_at)


class ScheduleClaim(BaseModel):
    """The schedule that a principal was issued for: what it sends, and nothing else."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    id: str
    sha256: str
    """Of the task, its arguments, and the pipelines that it is run and that all this is done for."""
