from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextvars import ContextVar

from taskiq_flow_security.stores import background

_request: ContextVar[str] = ContextVar("request")


async def test_what_begins_in_the_background_knows_nothing_of_the_request_in_which_it_began() -> None:
    known: Future[str] = Future()
    _request.set("the first one")
    background.call_soon(lambda: known.set_result(_request.get("none")))
    assert await asyncio.wrap_future(known) == "none"


async def test_what_is_only_asked_in_the_background_keeps_nothing_of_its_request() -> None:
    _request.set("this one")
    assert await background.run(_ask()) == "none"


async def test_what_goes_on_to_its_end_in_the_background_is_done_in_its_request() -> None:
    _request.set("this one")
    assert await background.run_through(_ask()) == "this one"


async def _ask() -> str:
    return _request.get("none")
