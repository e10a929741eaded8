"""The OpenAPI document as a page to read: plain HTML without any script."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
section { border: 1px solid #d5dbe3; border-radius: 6px; padding: .2rem 1rem; margin: 1rem 0 }
h2 { font-size: 1.1rem } code, pre { font: 14px/1.4 ui-monospace, monospace }
pre { background: #f4f6f9; padding: .8rem; overflow-x: auto; border-radius: 6px }
.method { text-transform: uppercase; color: #fff; background: #23578a; border-radius: 4px; padding: .1rem .5rem }
td { padding: .1rem .8rem .1rem 0; vertical-align: top }
"""

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Lets the page use its own style, and nothing else."""


def page(document: dict[str, Any]) -> str:
    """The page. All that comes from the document is escaped."""
    return "".join(_page(document))


def _page(document: dict[str, Any]) -> Iterator[str]:
    info = document["info"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
    yield '<p>All of this is in <a href="openapi.json">openapi.json</a>.</p>'
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _operation(method, path, operation)
    yield "<h1>Schemas</h1>"
    for name, schema in document["components"]["schemas"].items():
        yield f'<section id="{escape(name)}"><h2>{escape(name)}</h2>'
        yield f"<pre>{escape(json.dumps(schema, indent=2))}</pre></section>"
    yield "</body></html>"


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<section><h2><span class="method">{escape(method)}</span> <code>{escape(path)}</code></h2>'
    yield f"<p>{escape(operation['summary'])}</p>"
    if "requestBody" in operation:
        yield f"<p>Body: {_model(operation['requestBody'])}</p>"
    yield "<table>"
    for status, response in operation["responses"].items():
        yield f"<tr><td><code>{escape(status)}</code></td><td>{_model(response)}</td>"
        yield f"<td>{escape(response['description'])}</td></tr>"
    yield "</table></section>"


def _model(described: dict[str, Any]) -> str:
    (content,) = described["content"].values()
    name = escape(content["schema"]["$ref"].rpartition("/")[2])
    return f'<a href="#{name}">{name}</a>'
