"""Runs in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from taskiq_flow_security.errors import AuthenticationError, BackendUnavailableError
from taskiq_flow_security.losses import Losses
from taskiq_flow_security.runs.records import Run
from taskiq_flow_security.runs.signatures import RunSignatures
from taskiq_flow_security.stores import background
from taskiq_flow_security.stores.background import PerProcess
from taskiq_flow_security.stores.redis import UNAVAILABLE, RedisKeys, new_client
from taskiq_flow_security.tokens.jws import MAX_BYTES

_logger = logging.getLogger(__name__)

RUN_TTL = 7 * 86_400.0
"""Seconds for which a run is kept."""
RECENT_RUNS = 100
"""Runs that the list of a pipeline's latest ones holds."""

_DEADLINE = 5.0
"""Seconds after which a run is not waited for any longer."""

# Whoever can write to Redis can put gigabytes there: what is longer than a token stays there.
_READ_LIST = """
local runs = {}
for _, run in ipairs(redis.call('LRANGE', KEYS[1], 0, ARGV[1])) do
  if #run <= tonumber(ARGV[2]) then runs[#runs + 1] = run end
end
return runs
"""

# A list entry is replaced by what it says, which the run's own key knows: others may have been put in front of it.
_REPLACE = """
local before = redis.call('GETRANGE', KEYS[1], 0, ARGV[3])
local place = redis.call('LPOS', KEYS[2], before)
if place then redis.call('LSET', KEYS[2], place, ARGV[1]) end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
"""

T = TypeVar("T")


class RedisRunStore:
    """Keeps each run for `ttl` seconds, and a list of the latest ones of each pipeline."""

    def __init__(
        self, url: str, names: RedisKeys, signatures: RunSignatures, clock: Callable[[], float], *, ttl: float = RUN_TTL
    ) -> None:
        new_client(url)  # says now what is wrong with the URL
        self._clients = PerProcess(lambda: new_client(url, retries=1))
        self._names = names
        self._signatures = signatures
        self._clock = clock
        self._ttl = ttl
        self._losses = Losses(_logger, "records of runs in Redis are not believed")

    async def add(self, run: Run) -> None:
        """Keep a run. Raises `BackendUnavailableError` if that is not possible now.

        Raises `AuthenticationError` if this process has no key to issue with.
        """
        text = self._signatures.sign_run(run, self._clock(), self._ttl)
        await self._do(self._write(run, text))

    async def update(self, run: Run) -> None:
        """Keep what has become of a run that was added. Raises as `add`."""
        text = self._signatures.sign_run(run, self._clock(), self._ttl)
        await self._do(self._replace(run, text))

    async def get(self, pipeline_id: str, run_id: str) -> Run | None:
        """The run, if it is one of this pipeline. Raises `BackendUnavailableError` if nobody can tell now."""
        text = await self._do(self._read(self._names.run(pipeline_id, run_id)))
        found = self._believe([text] if text else [], pipeline_id)
        return next((run for run in found if run.run_id == run_id), None)

    async def recent(self, pipeline_id: str, limit: int = 20) -> list[Run]:
        """The pipeline's latest runs, the newest first. Raises `BackendUnavailableError` if nobody can tell now."""
        texts = await self._do(self._read_list(self._names.recent(pipeline_id)))
        # One may have been put there again, also as it was before its outcome was known.
        runs = sorted(self._believe(texts, pipeline_id), key=lambda run: (run.started_at, run.outcome is not None))
        latest = {run.run_id: run for run in runs}
        return list(latest.values())[: -limit - 1 : -1]

    async def _write(self, run: Run, text: str) -> None:
        recent, ttl = self._names.recent(run.pipeline_id), int(self._ttl)
        async with self._clients.get().pipeline(transaction=True) as transaction:
            transaction.set(self._names.run(run.pipeline_id, run.run_id), text, ex=ttl)
            transaction.lpush(recent, text)
            transaction.ltrim(recent, 0, RECENT_RUNS - 1)
            transaction.expire(recent, ttl)
            await transaction.execute()

    async def _replace(self, run: Run, text: str) -> None:
        keys = self._names.run(run.pipeline_id, run.run_id), self._names.recent(run.pipeline_id)
        await self._clients.get().eval(_REPLACE, len(keys), *keys, text, int(self._ttl), MAX_BYTES)

    async def _read(self, key: str) -> object:
        return await self._clients.get().getrange(key, 0, MAX_BYTES)

    async def _read_list(self, key: str) -> list[object]:
        texts = await self._clients.get().eval(_READ_LIST, 1, key, RECENT_RUNS - 1, MAX_BYTES)
        return list(texts)

    def _believe(self, texts: Iterable[object], pipeline_id: str) -> list[Run]:
        believed = []
        now = self._clock()
        for text in texts:
            try:
                believed.append(self._signatures.read_run(text, pipeline_id, now))
            except AuthenticationError as error:
                self._losses.add(error.reason)
        return believed

    async def _do(self, operation: Coroutine[Any, Any, T]) -> T:
        try:
            return await background.run(asyncio.wait_for(operation, _DEADLINE))
        except UNAVAILABLE as error:
            raise BackendUnavailableError(
                f"The store of the runs cannot be reached ({type(error).__name__}); try again later."
            ) from None
