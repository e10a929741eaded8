"""A request reaches only the endpoint of its rule, with the pipeline that was decided on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from taskiq_flow_security import ConfigurationError
from taskiq_flow_security.http.asgi import route_path
from taskiq_flow_security.http.rules import (
    WEBSOCKET,
    Rule,
    RuleTable,
    guide_rules,
    is_normal,
    is_plain,
    taskiq_flow_rules,
    with_guide_rules,
)
from tests.edge import request

PATTERNS = [
    "/pipelines",
    "/pipelines/{pipeline}",
    "/pipelines/{pipeline}/dag",
    "/numbers/{pipeline:int}",
    "/files/{pipeline:path}/raw",
    "/files/{pipeline:path}",
    "/ids/{pipeline:uuid}",
    "/amounts/{pipeline:float}/x",
    "/pipelines/{pipeline}/runs/{run}",
]
RULES = tuple(
    Rule("GET", path, f"endpoint-{number}", "read" if "{" in path else None, "{pipeline}" if "{" in path else None)
    for number, path in enumerate(PATTERNS)
)
TABLE = RuleTable(RULES)


async def _tell(request: Request) -> Response:
    route: Any = request.scope["route"]
    pipeline = request.path_params.get("pipeline")
    return JSONResponse([route.path, None if pipeline is None else str(pipeline)])


ROUTER = Starlette(routes=[Route(path, _tell) for path in PATTERNS])

segments = st.one_of(
    st.sampled_from(
        [
            "pipelines",
            "Pipelines",
            "p1",
            "dag",
            "runs",
            "files",
            "numbers",
            "ids",
            "amounts",
            "raw",
            "x",
            "7",
            "007",
            "1.0",
        ]
    ),
    st.sampled_from(["", ".", "..", "%2f", "%2F", "\\", "\n", "\x00", "é", "\ufffd", "a b", ";", "12345678" * 4]),
    st.text(max_size=4),
)
paths = st.lists(segments, max_size=6).map(lambda parts: "/" + "/".join(parts))


@given(paths)
@example("/pipelines\n")
@example("/files//raw")
@example("/files/../raw")
@example("/numbers/007")
@example(f"/ids/{'12345678' * 4}")
async def test_the_router_reaches_the_endpoint_of_the_rule_with_its_pipeline(path: str) -> None:
    match = TABLE.find("GET", path)
    if match is None:
        return
    answer = await request(ROUTER, "GET", path)
    assert answer.status == 200
    assert JSONResponse([match.rule.path, match.pipeline]).body == answer.body


@given(paths)
async def test_a_path_that_the_router_would_change_is_unknown(path: str) -> None:
    answer = await request(ROUTER, "GET", path)
    if answer.status == 307:
        assert TABLE.find("GET", path) is None


@given(path=st.text("/ab.", max_size=8), root=st.text("/ab", max_size=4))
def test_the_path_below_a_mount_is_the_one_that_the_router_sees(path: str, root: str) -> None:
    scope = {"type": "http", "path": path, "root_path": root}
    assert route_path(scope) == get_route_path(scope)


@pytest.mark.parametrize(
    "path",
    [
        "/pipelines/",
        "//pipelines",
        "/pipelines//dag",
        "/./pipelines",
        "/pipelines/.",
        "/x/../pipelines",
        "/pipelines/../pipelines",
        "/PIPELINES",
        "/pipelines\n",
        "/pipelines\x00",
        "/pipelines\\",
        "/pipelines\u200b",
        "pipelines",
        "",
        "*",
        "/pipelines?x",
        "/pipelines/" + "a" * 3000,
        "/numbers/" + "9" * 5000,
        "/numbers/\u0667",
    ],
)
def test_another_way_to_write_a_path_is_unknown(path: str) -> None:
    match = TABLE.find("GET", path)
    assert match is None or match.rule.path == "/pipelines/{pipeline}", path
    if path != "/pipelines?x":
        assert match is None


@pytest.mark.parametrize("method", ["POST", "get", "WEBSOCKET", "OPTIONS", "", "GET ", "CONNECT"])
def test_another_method_is_unknown(method: str) -> None:
    assert TABLE.find(method, "/pipelines") is None


def test_get_covers_head() -> None:
    assert TABLE.find("HEAD", "/pipelines") == TABLE.find("GET", "/pipelines")


@pytest.mark.parametrize("raw", [b"/a%2Fb", b"/a%2fb", b"/a%5cb", b"/%2e%2e/b", b"/a%00"])
def test_an_encoded_separator_is_not_plain(raw: bytes) -> None:
    assert not is_plain(raw)


@pytest.mark.parametrize("raw", [b"", b"/pipelines/p1", b"/caf%C3%A9", b"/a%20b", b"/100%25"])
def test_other_encoded_characters_are_plain(raw: bytes) -> None:
    assert is_plain(raw)


def test_a_path_can_have_a_slash_at_its_end_where_its_rule_has_it() -> None:
    table = RuleTable((Rule("GET", "/list/", "list"),))
    assert table.find("GET", "/list/") is not None
    assert table.find("GET", "/list") is None
    assert is_normal("/")


def test_what_is_asked_of_unknown_paths_is_not_remembered() -> None:
    table = RuleTable(RULES)
    for number in range(10_000):
        table.find("GET", f"/{number}" + "x" * 4000)
        table.find(f"M{number}", "/pipelines")
    assert table._remembered.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (("get", "/a", "a"), "method"),
        (("TRACE", "/a", "a"), "method"),
        (("GET", "a", "a"), "path"),
        (("GET", "/a//b", "a"), "path"),
        (("GET", "/a/../b", "a"), "path"),
        (("GET", "/a\n", "a"), "path"),
        (("GET", "/{x}/{x}", "a"), "Duplicated"),
        (("GET", "/{x:nothing}", "a", "read", "{x}"), "nothing"),
        (("GET", "/a", ""), "endpoint"),
        (("GET", "/a", 'a"\r\nx: y'), "endpoint"),
        (("GET", "/a", "a", "write"), "permission"),
        (("GET", "/a", "a", ["read"]), "permission"),
        (("GET", "/a", "a", None, None, "false"), "public must be True or False"),
        ((["GET", "POST"], "/a", "a"), "one rule for each method"),
        (("GET", None, "a"), "as text"),
        (("GET", "/a", "a", None, "p"), "permission"),
        (("GET", "/a/{x}", "a", "read", "{y}"), "parameter"),
        (("GET", "/a/{x}", "a", "read", "a-{x}"), "pipeline"),
        (("GET", "/a/{x:int}", "a", "read", "{x:int}"), "pipeline"),
        (("GET", "/a", "a", "read", "*"), "pipeline"),
        (("GET", "/a", "a", "read", ""), "pipeline"),
        (("GET", "/a", "a", "read", None, True), "public"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_a_configuration_error(rule: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        RuleTable((Rule(*rule),))


@pytest.mark.parametrize(
    ("first", "second"),
    [("/a/{x}", "/a/b"), ("/a", "/a"), ("/a/{x}", "/a/{y}"), ("/{x:path}", "/a/b"), ("/a/{x:int}", "/a/7")],
)
def test_a_rule_that_another_one_hides_is_a_configuration_error(first: str, second: str) -> None:
    with pytest.raises(ConfigurationError, match="comes before it"):
        RuleTable((Rule("GET", first, "one"), Rule("GET", second, "two", "admin")))


def test_the_more_special_rule_can_come_first() -> None:
    table = RuleTable((Rule("GET", "/a/b", "b", "admin"), Rule("GET", "/a/{x}", "x", "read", "{x}")))
    found = table.find("GET", "/a/b")
    assert found is not None
    assert found.rule.endpoint == "b"


def test_the_rules_that_come_with_the_package_make_tables() -> None:
    RuleTable(taskiq_flow_rules())
    table = RuleTable(guide_rules())
    for prefix in ("", "/api"):
        found = table.find("POST", f"{prefix}/pipelines/p1/execute")
        assert found is not None
        assert (found.rule.endpoint, found.pipeline) == ("execute_pipeline", "p1")
        assert table.find(WEBSOCKET, f"{prefix}/ws") is not None
    assert table.find("GET", "/docs") is None


def test_the_rules_of_a_user_come_before_those_of_the_guide_and_replace_the_ones_that_they_hide() -> None:
    mine = (
        Rule("GET", "/pipelines", "mine", public=True),
        Rule("GET", "/pipelines/{name}/dag", "mine", "admin"),
        Rule("GET", "/pipelines/{number:int}/status", "mine", "read", "{number}"),
        Rule("GET", "/{word}", "mine", "execute"),
    )
    table = RuleTable(with_guide_rules(mine))

    def endpoint(method: str, path: str) -> str | None:
        found = table.find(method, path)
        return None if found is None else found.rule.endpoint

    for path in ("/pipelines", "/pipelines/p1/dag", "/pipelines/7/status", "/whoami", "/health"):
        assert endpoint("GET", path) == "mine"
    assert endpoint("GET", "/pipelines/p1/status") == "get_status"
    assert endpoint("GET", "/api/pipelines/p1/dag") == "get_dag"
    assert endpoint("POST", "/pipelines/p1/execute") == "execute_pipeline"
    assert endpoint("POST", "/pipelines") is None


@pytest.mark.parametrize("rules", [[("GET", "/", "index")], ["GET"], [None]])
def test_what_are_no_rules_is_a_configuration_error(rules: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"rules: give each as Rule\(method, path, endpoint"):
        with_guide_rules(rules)


def test_a_single_rule_is_a_table_of_one() -> None:
    rule: Any = Rule("GET", "/", "index", public=True)
    assert with_guide_rules(rule) == with_guide_rules([rule])


async def test_rules_name_full_paths_also_below_mounts() -> None:
    mounted = Starlette(routes=[Mount("/sub", routes=[Route("/things/{thing}", _tell)])])
    table = RuleTable((Rule("GET", "/sub/things/{thing}", "thing", "read", "{thing}"),))
    assert (await request(mounted, "GET", "/sub/things/a")).status == 200
    assert table.find("GET", "/sub/things/a") is not None
    assert table.find("GET", "/things/a") is None


def test_a_rule_may_carry_what_cannot_be_hashed() -> None:
    @dataclass(frozen=True)
    class Tagged(Rule):
        tags: list[str] = field(default_factory=list)

    rule = Tagged("GET", "/list", "list", tags=["x"])
    match = RuleTable((rule,)).find("GET", "/list")
    assert match is not None
    assert match.rule is rule
