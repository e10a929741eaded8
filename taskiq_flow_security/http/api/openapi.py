"""The OpenAPI document (3.1) of the API, made of its models."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import models_json_schema

import taskiq_flow_security
from taskiq_flow_security.http.api import models
from taskiq_flow_security.live_policy import PolicyChange, PolicyDocument, Revocation

_REFERENCE = "#/components/schemas/{model}"


class Operation(NamedTuple):
    """One endpoint."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[BaseModel]
    status: int = 200
    body: type[BaseModel] | None = None
    public: bool = False
    conditional: bool = False
    """Whether the caller can say which version it wants to change."""


OPERATIONS = (
    Operation("get", "/health", "health", "Whether the API answers.", models.Health, public=True),
    Operation("get", "/whoami", "whoami", "Who asks.", models.Caller),
    Operation("get", "/pipelines", "list_pipelines", "The pipelines that the caller may read.", models.PipelineList),
    Operation("get", "/pipelines/{pipeline_id}/dag", "get_dag", "The steps of a pipeline.", models.Dag),
    Operation(
        "get",
        "/pipelines/{pipeline_id}/critical-path",
        "get_critical_path",
        "A longest chain of steps.",
        models.CriticalPath,
    ),
    Operation(
        "get",
        "/pipelines/{pipeline_id}/parallel-groups",
        "get_parallel_groups",
        "Which steps can run at the same time.",
        models.ParallelGroups,
    ),
    Operation(
        "post",
        "/pipelines/{pipeline_id}/execute",
        "execute_pipeline",
        "Start a run in the caller's name.",
        models.RunStarted,
        status=202,
        body=models.Execution,
    ),
    Operation("get", "/pipelines/{pipeline_id}/status", "get_status", "The latest runs.", models.PipelineStatus),
    Operation("get", "/pipelines/{pipeline_id}/runs/{run_id}", "get_run", "One run.", models.RunDetails),
    Operation("get", "/policy", "get_policy", "What has been changed at run time.", PolicyDocument),
    Operation(
        "patch",
        "/policy",
        "change_policy",
        "Change roles, access control lists or limits: by name, null puts a name back to the settings.",
        PolicyDocument,
        body=PolicyChange,
        conditional=True,
    ),
    Operation(
        "post", "/policy/revocations", "revoke", "Revoke something from now on.", PolicyDocument, body=Revocation
    ),
    Operation(
        "post", "/policy/reinstatements", "reinstate", "Take a revocation back.", PolicyDocument, body=Revocation
    ),
)

_PROBLEMS = {
    400: "Several credentials, or credentials in the query string.",
    401: "No credentials, or a token that is not valid.",
    403: "An API key that is not valid, a right that is missing, or a connection that is not encrypted.",
    404: "There is no such pipeline or run.",
    408: "The body did not come in time.",
    412: "The policy is at another version than If-Match says.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The body, or what is in it, does not fit.",
    429: "Too many requests, or too many failed logins.",
    500: "An unexpected error.",
    503: "Something that is needed for this is away.",
}
_EVERYWHERE = (403, 429, 500, 503)
_WITH_CREDENTIALS = (400, 401)
_WITH_BODY = (408, 413, 415, 422)

_HEADERS = {
    202: {"Location": "Where the run can be followed, relative to this path."},
    401: {"WWW-Authenticate": "RFC 6750."},
    429: {"Retry-After": "Seconds.", "RateLimit": "What is left.", "RateLimit-Policy": "The limit."},
    503: {"Retry-After": "Seconds."},
}


@cache
def document() -> dict[str, Any]:
    """The document, as JSON would have it."""
    shown: list[type[BaseModel]] = [models.ProblemDetails, *(operation.answer for operation in OPERATIONS)]
    bodies = [operation.body for operation in OPERATIONS if operation.body is not None]
    _, schemas = models_json_schema(
        [*((model, "serialization") for model in shown), *((model, "validation") for model in bodies)],
        ref_template=_REFERENCE,
    )
    paths: dict[str, dict[str, JsonValue]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pipelines",
            "version": taskiq_flow_security.__version__,
            "description": "The pipelines of a TaskIQ broker: look at them, start them, follow their runs. "
            "The WebSocket at /ws sends the events of runs.",
        },
        "servers": [{"url": "/"}, {"url": "/api"}],
        "security": [{"apiKey": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
        },
    }


def _operation(operation: Operation) -> dict[str, JsonValue]:
    names = [name for name in ("pipeline_id", "run_id") if f"{{{name}}}" in operation.path]
    problems = [
        *_EVERYWHERE,
        *(() if operation.public else _WITH_CREDENTIALS),
        *((404,) if names else ()),
        *(_WITH_BODY if operation.body else ()),
        *((412,) if operation.conditional else ()),
    ]
    described: dict[str, JsonValue] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            str(operation.status): _response(
                HTTPStatus(operation.status).phrase, operation.answer, "application/json", operation.status
            ),
            **{
                str(status): _response(_PROBLEMS[status], models.ProblemDetails, "application/problem+json", status)
                for status in sorted(problems)
            },
        },
    }
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if operation.conditional:
        version: JsonValue = {"type": "string", "pattern": '^"[0-9]{1,18}"$'}
        described["parameters"] = [{"name": "If-Match", "in": "header", "required": False, "schema": version}]
    if operation.body is not None:
        described["requestBody"] = {"content": {"application/json": {"schema": _reference(operation.body)}}}
    if operation.public:
        described["security"] = []
    return described


def _response(description: str, model: type[BaseModel], media_type: str, status: int) -> JsonValue:
    response: dict[str, JsonValue] = {
        "description": description,
        "content": {media_type: {"schema": _reference(model)}},
    }
    if status in _HEADERS:
        response["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS[status].items()
        }
    return response


def _reference(model: type[BaseModel]) -> JsonValue:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
