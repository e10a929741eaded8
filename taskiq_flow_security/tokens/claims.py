"""Claims that more than one kind of token has."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from taskiq_flow_security.core.principal import UNRESTRICTED, Permission, Scope


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
