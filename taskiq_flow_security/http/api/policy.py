"""The endpoints by which the policy is changed at run time."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from taskiq_flow_security.environment import names_once
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.http.api import bodies
from taskiq_flow_security.http.api.bodies import M
from taskiq_flow_security.http.api.endpoints import caller
from taskiq_flow_security.live_policy import Administration, PolicyChange, PolicyDocument, Revocation

_VERSION = re.compile(r'"(\d{1,18})"')


class PolicyEndpoints:
    """Shows what has been changed at run time and changes it, in the caller's name."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def show(self, request: Request) -> Response:
        """What has been changed."""
        return _answer(await self._administration.policy(caller(request)))

    async def change(self, request: Request) -> Response:
        """Change roles, access control lists or limits."""
        version = _expected(request)
        change = await _read(request, PolicyChange)
        return await _made(self._administration.change(caller(request), change, version=version))

    async def revoke(self, request: Request) -> Response:
        """Revoke something."""
        revocation = await _read(request, Revocation)
        return await _made(self._administration.revoke(caller(request), revocation))

    async def reinstate(self, request: Request) -> Response:
        """Take a revocation back."""
        revocation = await _read(request, Revocation)
        return await _made(self._administration.reinstate(caller(request), revocation))


async def _read(request: Request, model: type[M]) -> M:
    """As `bodies.read`. No name may stand twice, as in the settings: the last one would win, unseen."""
    data = await bodies.receive(request)
    body = bodies.parse(data, model)
    try:
        json.loads(data, object_pairs_hook=names_once)
    except ValueError:
        raise HTTPException(422, "The body does not fit. A name stands twice in one object.") from None
    return body


async def _made(change: Awaitable[PolicyDocument]) -> Response:
    """The policy after a change. Raises `HTTPException` for one that could not be in force."""
    try:
        return _answer(await change)
    except ConfigurationError as error:
        raise HTTPException(422, str(error)) from None


def _answer(policy: PolicyDocument) -> Response:
    return bodies.answer(policy, headers={"etag": f'"{policy.version}"'})


def _expected(request: Request) -> int | None:
    """The version that the caller wants to change (RFC 9110, section 13.1.1), if it says so."""
    given = request.headers.get("if-match", "*")
    if given == "*":
        return None
    version = _VERSION.fullmatch(given)
    if version is None:
        raise HTTPException(422, 'If-Match names one version, as ETag does: "3".')
    return int(version[1])
