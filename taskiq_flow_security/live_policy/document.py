"""What has been changed at run time, on top of the settings: one document, of which each change makes a new version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from taskiq_flow_security.core.revocations import Revocations
from taskiq_flow_security.core.string_enum import StringEnum
from taskiq_flow_security.credentials import id_of, is_id
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.setting_types import (
    AclConfig,
    Names,
    PipelineAcls,
    PipelineLimits,
    RateLimit,
    TaskAcls,
    TaskLimits,
    check_hashed_api_key,
    check_roles,
    explain,
)

Name = Annotated[str, Field(min_length=1, max_length=1024)]
Roles = Annotated[Names, AfterValidator(check_roles)]
Until = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
"""When a revocation can be forgotten, in seconds since the epoch; ``None`` is never."""


class RevocationKind(StringEnum):
    """What can be revoked, each by its name."""

    API_KEY = "api_key"
    """By the id of the key, as audit events show it, never the key itself."""
    SUBJECT = "subject"
    """All that somebody does, with whatever credential."""
    TOKEN = "token"  # noqa: S105 (a kind of thing)
    """By the ``jti`` of a bearer token, of a principal, or of a message's signature."""
    SIGNING_KEY = "signing_key"
    """By its ``kid``: it neither signs any more nor is believed."""


def _api_key_id(text: str) -> str:
    if is_id(text):
        return text
    if is_id(text.strip().lower()) or text != text.strip():
        raise ValueError("write the id as audit events show it, or give the key as sha256:<hex> of it")
    check_hashed_api_key(text)
    return id_of(text)


def _token_id(text: str) -> str:
    if text.count(".") >= 2 and text.startswith("eyJ"):
        raise ValueError("name the token by its jti, and keep the token itself to yourself")
    return text


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Given(_Model):
    """What a program gives: what is wrong with it is a `ConfigurationError`, which does not quote it."""

    _what: ClassVar[str]

    if not TYPE_CHECKING:  # or type checkers would take this for the fields that there are

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                problem = explain(error, self._what)
            else:
                return
            raise ConfigurationError(problem)  # out here, so that it does not carry along what does

        # As pydantic marks its own: what is read, over HTTP say, is validated as any model is.
        __init__.__pydantic_base_init__ = True


class Revocation(_Given):
    """One thing that is revoked: exactly one kind by name, or all that was issued before a moment.

    ``Revocation(subject="mallory")``; ``Revocation(issued_before=time.time())``. An API key is named by its id; where
    the key itself is given, what is kept of it is that. Raises `ConfigurationError` for anything else.
    """

    _what = "revocation"

    api_key: Annotated[Name, AfterValidator(_api_key_id)] | None = None
    subject: Name | None = None
    token: Annotated[Name, AfterValidator(_token_id)] | None = None
    signing_key: Name | None = None
    issued_before: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds since the epoch."""
    until: Until = None

    @model_validator(mode="after")
    def _check(self) -> Revocation:
        given = [name for name in (*RevocationKind, "issued_before") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(RevocationKind)}, issued_before")
        if self.until is not None and given[0] in (RevocationKind.SIGNING_KEY, "issued_before"):
            raise ValueError(f"until cannot be given with {given[0]}, which is never forgotten by itself")
        return self

    @property
    def named(self) -> tuple[RevocationKind, str] | None:
        """What is revoked by name; ``None`` where it is all that was issued before a moment."""
        for kind in RevocationKind:
            name = getattr(self, kind)
            if name is not None:
                return kind, name
        return None


class Revoked(_Model):
    """All that is revoked, by kind and name, with the moment from which on that can be forgotten."""

    api_key: dict[Name, Until] = {}
    subject: dict[Name, Until] = {}
    token: dict[Name, Until] = {}
    signing_key: dict[Name, Until] = {}
    issued_before: float | None = None
    reinstated: list[Name] = []
    """Signing keys that are revoked no more. They sign no policy: who does not know yet that they may would not believe
    it, and put an older one back.
    """

    def with_(self, revocation: Revocation) -> Revoked:
        """This and one more."""
        named = revocation.named
        if named is None:
            before = max(revocation.issued_before or 0, self.issued_before or 0)
            return self.model_copy(update={"issued_before": before})
        kind, name = named
        return self.model_copy(update={kind.value: {**getattr(self, kind), name: revocation.until}})

    def without(self, revocation: Revocation) -> Revoked:
        """This, with one thing revoked no more."""
        named = revocation.named
        if named is None:
            return self.model_copy(update={"issued_before": None})
        kind, name = named
        left = {other: until for other, until in getattr(self, kind).items() if other != name}
        again = {name} if kind is RevocationKind.SIGNING_KEY and name in self.signing_key else set()
        return self.model_copy(update={kind.value: left, "reinstated": sorted(again.union(self.reinstated))})

    def united(self, other: Revoked) -> Revoked:
        """This, and what the other one revokes: for as long as either does."""
        update = {kind.value: _united(getattr(self, kind), getattr(other, kind)) for kind in RevocationKind}
        moments = [moment for moment in (self.issued_before, other.issued_before) if moment is not None]
        reinstated = sorted({*self.reinstated, *other.reinstated})
        return self.model_copy(update={**update, "issued_before": max(moments, default=None), "reinstated": reinstated})

    def at(self, now: float) -> Revoked:
        """This, without what can be forgotten by now."""
        return self.model_copy(
            update={
                kind.value: {name: until for name, until in getattr(self, kind).items() if until is None or until > now}
                for kind in RevocationKind
            }
        )

    def revocations(self) -> Revocations:
        """What decisions are made on."""
        return Revocations(self.api_key, self.subject, self.token, self.issued_before)


def _united(one: dict[str, float | None], other: dict[str, float | None]) -> dict[str, float | None]:
    both = {name: _later(one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **both}


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


class PolicyDocument(_Model):
    """A version of what was changed. Whatever it does not name is as the settings of each process say."""

    version: int = Field(default=0, ge=0)
    pipeline_acls: PipelineAcls = {}
    task_acls: TaskAcls = {}
    roles: dict[Name, Roles] = {}
    """By subject: the roles that it has from now on, in place of those of its API key, token or service."""
    rate_limits: dict[Name, RateLimit] = {}
    """By endpoint."""
    role_rate_limits: dict[Name, dict[str, RateLimit]] = {}
    """By role, then by endpoint."""
    task_rate_limits: TaskLimits = {}
    pipeline_rate_limits: PipelineLimits = {}
    principal_rate_limit: RateLimit | None = None
    rate_limit_default: RateLimit | None = None
    revoked: Revoked = Revoked()

    def changed(self, change: PolicyChange) -> PolicyDocument:
        """This with a change made. Raises `ConfigurationError` for one that could not be a setting."""
        plain = self.model_dump()
        for setting in change.model_fields_set:
            changed = getattr(change, setting)
            if isinstance(changed, dict):
                entries = {**plain[setting], **changed}
                changed = {name: entry for name, entry in entries.items() if entry is not None}
            plain[setting] = changed
        try:
            return PolicyDocument.model_validate(plain)
        except ValidationError as error:
            problem = explain(error, "change")
        raise ConfigurationError(problem)

    def with_revoked(self, revoked: Revoked) -> PolicyDocument:
        """This, with other revocations."""
        return self.model_copy(update={"revoked": revoked})


class PolicyChange(_Given):
    """What to change, by setting and name; ``None`` puts a name, or a limit, back to what each process's settings say.

    ``PolicyChange(pipeline_acls={"data-pipeline": {"execute": ["processor"]}}, roles={"ada": ["admin"]})``
    Raises `ConfigurationError` for what could not be a setting.
    """

    _what = "change"

    pipeline_acls: dict[str, AclConfig | None] = {}
    task_acls: dict[str, AclConfig | None] = {}
    roles: dict[Name, Roles | None] = {}
    rate_limits: dict[Name, RateLimit | None] = {}
    role_rate_limits: dict[Name, dict[str, RateLimit] | None] = {}
    task_rate_limits: dict[Name, RateLimit | None] = {}
    pipeline_rate_limits: dict[Name, RateLimit | None] = {}
    principal_rate_limit: RateLimit | None = None
    rate_limit_default: RateLimit | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that two versions do not have in common."""

    rule: str
    """Such as ``pipeline_acls.data-pipeline``."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{to_json(self.before).decode()} -> {to_json(self.after).decode()}"


def differences(old: PolicyDocument, new: PolicyDocument) -> Iterator[Difference]:
    """What has been changed, entry by entry, as plain JSON values; ``None`` for what is as the settings say."""
    before, after = _entries(old), _entries(new)
    for rule in sorted({**before, **after}):
        if before.get(rule) != after.get(rule) or (rule in before) != (rule in after):
            yield Difference(rule, before.get(rule), after.get(rule))


def _entries(document: PolicyDocument) -> dict[str, Any]:
    plain = document.model_dump(mode="json", exclude={"version"})
    revoked = plain.pop("revoked")
    before = revoked.pop("issued_before")
    revoked.pop("reinstated")  # which follows from the others
    entries: dict[str, Any] = {}
    for setting, value in plain.items():
        if isinstance(value, dict):
            entries |= {f"{setting}.{name}": entry for name, entry in value.items()}
        elif value is not None:
            entries[setting] = value
    entries |= {
        f"revoked.{kind}.{name}": "for ever" if until is None else until
        for kind in revoked
        for name, until in revoked[kind].items()
    }
    return entries if before is None else {**entries, "revoked.issued_before": before}
