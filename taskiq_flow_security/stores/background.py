"""An event loop of our own, in a thread of its own.

What is sent to and received from a store must go on whoever calls: synchronous code, any thread, an event loop that is
about to be closed, a process that has been forked.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """One thing for each process. A forked process makes its own.

    It never lets go of its parent's: connections are shared after a fork, and clearing them away would disturb them.
    Two threads may make one at the same time; one of the two is kept.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}

    def get(self) -> T:
        """This process's own."""
        pid = os.getpid()
        made = self._made.get(pid)
        return self._made.setdefault(pid, self._make()) if made is None else made


class _Thread:
    """A thread that runs an event loop, from when it is first needed to the end of the process."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            with self._starting:
                if self._loop is None:
                    loop = asyncio.new_event_loop()
                    threading.Thread(target=loop.run_forever, name="taskiq-flow-security-stores", daemon=True).start()
                    self._loop = loop
        return self._loop


_thread = PerProcess(_Thread)


def call_soon(function: Callable[[], object]) -> None:
    """Call a function in the background, and in no context: what begins there outlives whose turn it was.

    From any thread; does not wait.
    """
    _thread.get().loop().call_soon_threadsafe(function, context=Context())


async def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that runs in the background. From any event loop.

    It runs in no context either: a connection that it opens would keep it.
    """
    loop = _thread.get().loop()
    return await asyncio.wrap_future(Context().run(asyncio.run_coroutine_threadsafe, coroutine, loop))


async def run_through(coroutine: Coroutine[Any, Any, T]) -> T:
    """As `run`, in the caller's context; what has begun goes on to its end where the caller no longer waits for it."""
    running = asyncio.run_coroutine_threadsafe(coroutine, _thread.get().loop())
    return await asyncio.shield(asyncio.wrap_future(running))
