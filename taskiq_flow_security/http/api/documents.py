"""What everybody may see: the OpenAPI document, a page that shows it, and the page to work with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from taskiq_flow_security.http.api import docs
from taskiq_flow_security.http.api.openapi import document
from taskiq_flow_security.http.rules import Rule

PAGE = Path(__file__).parent.parent / "page"
"""``index.html`` is served as ``/``, each other file of it as ``/page/<name>``."""

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_SHOWN = frozenset({".css", ".html", ".ico", ".js", ".png", ".svg"})


class Document(NamedTuple):
    """One thing to be served as it is."""

    path: str
    endpoint: str
    media_type: str
    content: Callable[[str], bytes]
    """What it says where it is served under this prefix."""
    policy: str = "default-src 'none'"
    """What it may load (Content Security Policy, level 3)."""


def page_routes() -> list[BaseRoute]:
    """The routes of the page to work with."""
    return [_route(shown) for shown in _page(PAGE)]


def description_routes() -> list[BaseRoute]:
    """The routes of what describes the API, wherever that is served."""
    return [_route(shown) for shown in _descriptions()]


def public_rules(prefixes: Iterable[str]) -> list[Rule]:
    """The rules that let everybody see all this; `prefixes` are where the API is served."""
    described = [
        Rule("GET", prefix + shown.path, shown.endpoint, public=True)
        for prefix in prefixes
        for shown in _descriptions()
    ]
    return [*described, *(Rule("GET", shown.path, shown.endpoint, public=True) for shown in _page(PAGE))]


@cache
def _descriptions() -> tuple[Document, ...]:
    return (
        Document("/openapi.json", "openapi", "application/json", _openapi),
        Document("/docs", "docs", "text/html", _always(docs.page(document()).encode()), docs.CONTENT_SECURITY_POLICY),
    )


@lru_cache(maxsize=16)  # some applications mount others under prefixes that clients make up
def _openapi(prefix: str) -> bytes:
    described = {**document(), "servers": [{"url": prefix}]} if prefix else document()
    return json.dumps(described).encode()


@lru_cache(maxsize=64)
def _version(content: bytes) -> str:
    """An entity tag (RFC 9110 section 8.8.3)."""
    return f'"{sha256(content).hexdigest()[:32]}"'


def _always(content: bytes) -> Callable[[str], bytes]:
    return lambda _prefix: content


def _page(directory: Path) -> Iterator[Document]:
    files = sorted(directory.glob("*")) if directory.is_dir() else []
    for file in files:
        if file.suffix in _SHOWN:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            media_type = guess_type(file.name)[0] or "application/octet-stream"
            yield Document(path, "visualization_page", media_type, _always(file.read_bytes()), _PAGE_POLICY)


def _route(shown: Document) -> Route:
    async def show(request: Request) -> Response:
        content = shown.content(request.scope.get("root_path", ""))
        version = _version(content)
        headers = {**_HEADERS, "content-security-policy": shown.policy, "etag": version}
        if version in (held := request.headers.get("if-none-match", "")) or held == "*":  # RFC 9110 section 13.1.2
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=shown.media_type)

    return Route(shown.path, show, name=shown.endpoint)
