"""What a user adds to an ASGI application."""

from __future__ import annotations

from collections.abc import Iterable

from taskiq_flow_security.core.principal import ANONYMOUS
from taskiq_flow_security.denial import denial_in
from taskiq_flow_security.http.answer import Answer, hsts
from taskiq_flow_security.http.asgi import App, Receive, Scope, Send
from taskiq_flow_security.http.gate import Gate
from taskiq_flow_security.http.problems import problem_of
from taskiq_flow_security.http.rules import Rule, with_guide_rules
from taskiq_flow_security.http.websocket import WebSockets
from taskiq_flow_security.security import FlowSecurity


class HTTPSecurityMiddleware:
    """Lets no request reach an ASGI application that its caller may not make.

    ``app.add_middleware(HTTPSecurityMiddleware, security=security, rules=[...])``. The `rules` come before those of the
    guide's API, which hold too but for the ones that they hide; a path that no rule knows is denied. While a request is
    handled, its principal acts: tasks are kicked in its name, `current_principal` knows it, and it is at
    ``request.state.principal``. A `FlowSecurityError` that the application raises, or a group of nothing else, becomes
    the answer that says it.

    Raises `ConfigurationError` if rules or settings are wrong.
    """

    def __init__(self, app: App, security: FlowSecurity, *, rules: Iterable[Rule] = ()) -> None:
        if not isinstance(security, FlowSecurity):
            raise TypeError(f"HTTPSecurityMiddleware needs a FlowSecurity, not {type(security).__name__}")
        self._app = app
        self._enabled = security.enabled
        self._gate = Gate(security, with_guide_rules(rules))
        self._hsts = hsts(security.config.hsts_max_age)
        self._websockets = WebSockets(app, self._gate, self._hsts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI 3.0)."""
        if scope["type"] != "http" or not self._enabled:
            await self._other(scope, receive, send)
            return
        gate = self._gate
        visit = gate.visit(scope)
        answer = Answer(send, self._hsts if visit.client.secure else None)
        try:
            principal = await gate.admit(visit)
        except Exception as error:  # noqa: BLE001 (whatever it is, the request is refused)
            refusal = gate.refuse(visit, error)
            if refusal is not None:
                await problem_of(refusal).send(answer.send)
                return
            principal = visit.principal or ANONYMOUS
        with gate.entered(scope, visit, principal):
            try:
                await self._app(scope, receive, answer.send)
            except Exception as error:
                denial = denial_in(error)
                if denial is None or answer.started:
                    raise
                await problem_of(denial).send(answer.send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle what is no request, or not secured."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not self._enabled:
            with self._gate.entered(scope, self._gate.visit(scope), ANONYMOUS):
                await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websockets.handle(scope, receive, send)
        else:
            raise RuntimeError(f"{scope['type']} is nothing that can be secured")
