"""Which request asks for what: a table from method and path to endpoint, permission and pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from starlette.routing import compile_path

from taskiq_flow_security.core.policy import ENDPOINT_PREFIX, AccessRequest, is_pipeline_name
from taskiq_flow_security.core.principal import Permission
from taskiq_flow_security.errors import ConfigurationError
from taskiq_flow_security.live_policy import administration

WEBSOCKET = "WEBSOCKET"
"""Stands for the method where the request is a WebSocket's handshake."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", WEBSOCKET})
_PARAMETER = re.compile(r"{(\w+)}")
_ENCODED = re.compile(rb"%(2f|5c|2e|00)", re.IGNORECASE)
_PERCENT = ord("%")
_ENDPOINT = re.compile(r"[A-Za-z0-9_.:-]+")

_LONGEST = 2048
"""Characters of a path, at most; of what is longer nothing is compared or remembered."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the requests of one endpoint need.

    ``Rule("POST", "/reports/{report}/run", "run_report", permission="execute", pipeline="{report}")``: `path` is
    written as for Starlette's router, `pipeline` is the name of one or a parameter of the path. Without a `permission`,
    any authenticated caller may pass. A permission without a pipeline is asked for the resource ``endpoint:<name>``. A
    `public` rule lets everybody pass, unauthenticated. ``GET`` covers ``HEAD``.

    Raises `ConfigurationError` for a rule that cannot be meant.
    """

    method: str
    path: str
    endpoint: str
    permission: Permission | str | None = None
    pipeline: str | None = None
    public: bool = False

    def __post_init__(self) -> None:
        what = f"rule {self.method} {self.path}"
        if not all(isinstance(text, str) for text in (self.method, self.path, self.endpoint, self.pipeline or "")):
            raise ConfigurationError(f"{what}: give it as text, all but the permission; one rule for each method.")
        if not isinstance(self.public, bool):
            raise ConfigurationError(f"{what}: public must be True or False.")
        if self.method not in _METHODS:
            raise ConfigurationError(f"{what}: the method must be one of {', '.join(sorted(_METHODS))}.")
        if not self.path.startswith("/") or not is_normal(self.path):
            raise ConfigurationError(f"{what}: the path must begin with / and have no empty, . or .. segments.")
        if not _ENDPOINT.fullmatch(self.endpoint):
            raise ConfigurationError(
                f"{what}: name the endpoint, in letters, digits and _.:-; limits and audit events go by that name."
            )
        if self.permission is not None and self.permission not in tuple(Permission):  # whatever it is
            raise ConfigurationError(f"{what}: permission must be one of {', '.join(Permission)}.")
        if self.public and (self.permission is not None or self.pipeline is not None):
            raise ConfigurationError(f"{what}: a public rule asks nobody for a permission; leave one of both out.")
        if self.pipeline is not None and self.permission is None:
            raise ConfigurationError(f"{what}: say which permission on the pipeline is needed.")
        if self.pipeline is not None:
            _check_pipeline(what, self.pipeline, _compile(self)[1])


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """The rule that a request falls under, and the pipeline that its path names. Equals itself only."""

    rule: Rule
    pipeline: str | None
    request: AccessRequest | None = field(init=False)
    """What has to be allowed, if anything."""
    task: str = field(init=False)
    """What audit events call the endpoint."""

    def __post_init__(self) -> None:
        rule, request = self.rule, None
        if rule.permission is not None:
            request = AccessRequest(Permission(rule.permission), self.pipeline, endpoint=rule.endpoint)
        object.__setattr__(self, "request", request)  # the dataclass is frozen
        object.__setattr__(self, "task", f"{ENDPOINT_PREFIX}{rule.endpoint}")


class RuleTable:
    """Finds the rule for a request: the first one whose path matches, as Starlette's router goes through its routes.

    Raises `ConfigurationError` if a rule could never be reached.
    """

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._paths: dict[str, list[tuple[re.Pattern[str], Any, Rule, Callable[[str | None], Match]]]] = {}
        for rule in rules:
            pattern, convertors = _compile(rule)
            if (earlier := self._hider(rule, pattern)) is not None:
                raise ConfigurationError(
                    f"rule {rule.method} {rule.path}: {earlier.path} comes before it; put the more special first."
                )
            match = lru_cache(maxsize=4096)(partial(Match, rule))  # one for all paths that ask for the same
            for method in ("GET", "HEAD") if rule.method == "GET" else (rule.method,):
                self._paths.setdefault(method, []).append((pattern, convertors, rule, match))
        self._remembered = lru_cache(maxsize=4096)(self._first)

    @property
    def endpoints(self) -> frozenset[str]:
        """The names of all endpoints."""
        return frozenset(rule.endpoint for rule in self._rules)

    def find(self, method: str, path: str) -> Match | None:
        """The rule for a path as the router will see it; none for one that is not in its normal form."""
        if method not in self._paths or len(path) > _LONGEST:
            return None
        return self._remembered(method, path)

    def _first(self, method: str, path: str) -> Match | None:
        if not is_normal(path):
            return None
        for pattern, convertors, rule, match in self._paths.get(method, ()):
            found = pattern.match(path)
            if found is None:
                continue
            parameter = _PARAMETER.fullmatch(rule.pipeline or "")
            if parameter is None:
                return match(rule.pipeline)
            name = parameter[1]
            return match(str(convertors[name].convert(found[name])))
        return None

    def hides(self, rule: Rule) -> bool:
        """Whether a rule that came after these could never be reached, where that is plain to see."""
        return self._hider(rule, _compile(rule)[0]) is not None

    def _hider(self, rule: Rule, pattern: re.Pattern[str]) -> Rule | None:
        """An earlier rule that every path of this one falls under, where that is plain to see."""
        for earlier, _, other, _ in self._paths.get(rule.method, ()):
            if _unnamed(earlier) == _unnamed(pattern) or ("{" not in rule.path and earlier.match(rule.path)):
                return other
        return None


def _unnamed(pattern: re.Pattern[str]) -> str:
    return re.sub(r"\?P<\w+>", "", pattern.pattern)


def _check_pipeline(what: str, pipeline: str, parameters: Any) -> None:
    parameter = _PARAMETER.fullmatch(pipeline)
    if parameter is not None:
        if parameter[1] not in parameters:
            raise ConfigurationError(f"{what}: the path has no parameter {pipeline}.")
    elif not is_pipeline_name(pipeline) or "{" in pipeline or "}" in pipeline:
        raise ConfigurationError(
            f"{what}: pipeline must be the name of one, or one parameter of the path, as {{name}}."
        )


def is_normal(path: str) -> bool:
    """Whether a path says what it means: no two ways to write it, and nothing that some parser on the way undoes."""
    if not path.startswith("/") or "\\" in path or "\ufffd" in path or not path.isprintable():
        return False
    segments = path[1:].split("/")
    return not any(segment in (".", "..") for segment in segments) and "" not in segments[:-1]


def is_plain(raw_path: bytes) -> bool:
    """Whether nothing that separates a path's segments was sent encoded (RFC 3986 section 2.2)."""
    return _PERCENT not in raw_path or _ENCODED.search(raw_path) is None


def _compile(rule: Rule) -> tuple[re.Pattern[str], Any]:
    try:
        pattern, _, convertors = compile_path(rule.path)
    except (AssertionError, ValueError) as error:
        raise ConfigurationError(f"rule {rule.method} {rule.path}: {error}") from None
    return pattern, convertors


def guide_rules(prefixes: Iterable[str] = ("", "/api")) -> tuple[Rule, ...]:
    """The API that taskiq-flow's security guide describes, under each of these prefixes."""
    read, execute, pipeline = Permission.READ, Permission.EXECUTE, "{pipeline_id}"
    return tuple(
        Rule(method, prefix + path, endpoint, permission, None if permission is None else pipeline)
        for prefix in prefixes
        for method, path, endpoint, permission in (
            ("GET", "/whoami", "whoami", None),
            ("GET", "/pipelines", "list_pipelines", None),
            ("GET", "/pipelines/{pipeline_id}/dag", "get_dag", read),
            ("GET", "/pipelines/{pipeline_id}/critical-path", "get_critical_path", read),
            ("GET", "/pipelines/{pipeline_id}/parallel-groups", "get_parallel_groups", read),
            ("POST", "/pipelines/{pipeline_id}/execute", "execute_pipeline", execute),
            ("GET", "/pipelines/{pipeline_id}/status", "get_status", read),
            ("GET", "/pipelines/{pipeline_id}/runs/{run_id}", "get_run", read),
            (WEBSOCKET, "/ws", "websocket_connect", None),
        )
    )


def with_guide_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """These rules, and after them those of `guide_rules` that none of them hides."""
    own = (rules,) if isinstance(rules, Rule) else tuple(rules)
    if not all(isinstance(rule, Rule) for rule in own):
        raise ConfigurationError("rules: give each as Rule(method, path, endpoint, ...).")
    table = RuleTable(own)
    return (*own, *(rule for rule in guide_rules() if not table.hides(rule)))


def policy_rules(prefixes: Iterable[str]) -> tuple[Rule, ...]:
    """The endpoints that change the policy at run time, under each of these prefixes."""
    return tuple(
        Rule(method, prefix + path, endpoint, Permission.ADMIN)
        for prefix in prefixes
        for method, path, endpoint in (
            ("GET", "/policy", administration.GET_POLICY),
            ("PATCH", "/policy", administration.CHANGE_POLICY),
            ("POST", "/policy/revocations", administration.REVOKE),
            ("POST", "/policy/reinstatements", administration.REINSTATE),
        )
    )


def taskiq_flow_rules() -> tuple[Rule, ...]:
    """The routes of taskiq-flow's own ``PipelineVisualizationAPI`` (1.2.2), its DAG and WebSocket routers mounted."""
    read, admin, pipeline = Permission.READ, Permission.ADMIN, "{pipeline_id}"
    return (
        Rule("GET", "/pipelines", "list_pipelines"),
        Rule("GET", "/pipelines/{pipeline_id}", "get_pipeline", read, pipeline),
        Rule("POST", "/pipelines/{pipeline_id}", "register_pipeline", admin, pipeline),
        Rule("GET", "/pipelines/{pipeline_id}/status", "get_status", read, pipeline),
        Rule("GET", "/pipelines/{pipeline_id}/dag", "get_dag", read, pipeline),
        Rule("GET", "/pipelines/{pipeline_id}/dag/dot", "get_dag", read, pipeline),
        Rule("GET", "/pipelines/{pipeline_id}/visualize", "get_dag", read, pipeline),
        Rule("GET", "/dag/{pipeline_id}", "get_dag", read, pipeline),
        Rule("GET", "/dag/{pipeline_id}/critical-path", "get_critical_path", read, pipeline),
        Rule("GET", "/dag/{pipeline_id}/parallel-groups", "get_parallel_groups", read, pipeline),
        Rule("GET", "/dag/{pipeline_id}/networkx", "get_dag", read, pipeline),
        Rule("GET", "/ws/clients/{pipeline_id}", "websocket_clients", read, pipeline),
        Rule("GET", "/ws/pipelines", "list_pipelines"),
        Rule("GET", "/metrics", "metrics", admin),
        Rule(WEBSOCKET, "/ws/{pipeline_id}", "websocket_connect", read, pipeline),
    )
