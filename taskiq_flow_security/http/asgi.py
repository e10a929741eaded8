"""What the ASGI specification (3.0) calls things."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Header = tuple[bytes, bytes]
"""Its name and its value."""

Headers = dict[bytes, list[bytes]]
"""The values of each header, in the order in which they came."""


def select_headers(headers: Iterable[Header], names: frozenset[bytes]) -> Headers:
    """Those headers that have one of these names, which are in lower case, as in ASGI all are."""
    selected: Headers = {}
    for name, value in headers:
        if name in names:
            selected.setdefault(name, []).append(value)
    return selected


def route_path(scope: Scope) -> str:
    """The path that the application's router looks at: without the prefix that it is mounted under.

    As Starlette (1.0) reads ``root_path``; ``""`` for the prefix itself.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :]
    return path
