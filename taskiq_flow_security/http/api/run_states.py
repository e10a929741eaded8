"""What became of runs: as the result backend tells, and as it told when it was asked before."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timezone
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json, to_json
from taskiq import AsyncBroker
from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.result import TaskiqResult

from taskiq_flow_security.errors import BackendUnavailableError, FlowSecurityError, ResultVerificationError
from taskiq_flow_security.http.api.models import RunDetails, RunError, RunSummary
from taskiq_flow_security.pipelines import AbandonedRunError
from taskiq_flow_security.results import ProtectedResults
from taskiq_flow_security.runs.records import Run, RunOutcome, RunState, RunStore

_logger = logging.getLogger(__name__)

_AT_ONCE = 2
"""Results of one list of runs that are in memory together; TaskIQ cannot tell how one ended without reading it."""
_LONGEST_CHAIN = 10
"""Errors, each the cause of the one before it, that are looked at; they may go round in a circle."""
_LONGEST_TEXT = 1000
"""Characters of an error that are remembered."""
_NOT_SHOWN = "It is no longer kept, or cannot be believed any longer."


class RunStates:
    """Knows the runs of a broker's pipelines. What a result has told is remembered with its run."""

    def __init__(self, runs: RunStore, broker: AsyncBroker) -> None:
        self._runs = runs
        self._broker = broker

    async def recent(self, pipeline_id: str) -> list[RunSummary]:
        """The latest runs of a pipeline. Raises `BackendUnavailableError` if nobody can tell now."""
        runs = await self._runs.recent(pipeline_id)
        few = asyncio.Semaphore(_AT_ONCE)
        outcomes = await asyncio.gather(*(self._outcome(run, few) for run in runs))
        return [
            RunSummary(
                run_id=run.run_id, state=_state(outcome), subject=run.subject, started_at=_moment(run.started_at)
            )
            for run, outcome in zip(runs, outcomes, strict=True)
        ]

    async def one(self, pipeline_id: str, run_id: str) -> RunDetails | None:
        """A run and its result. Raises `BackendUnavailableError` if nobody can tell now."""
        run = await self._runs.get(pipeline_id, run_id)
        if run is None:
            return None
        result = await self._result(run)
        outcome = await self._learn(run, result)
        value, problem = None, None
        if _state(outcome) is RunState.COMPLETED:
            value, problem = (None, _NOT_SHOWN) if result is None or result.is_err else _as_json(result.return_value)
        return RunDetails(
            pipeline_id=run.pipeline_id,
            run_id=run.run_id,
            state=_state(outcome),
            subject=run.subject,
            started_at=_moment(run.started_at),
            result=value,
            result_problem=problem,
            error=_error(outcome),
        )

    async def _outcome(self, run: Run, few: asyncio.Semaphore) -> RunOutcome | None:
        if run.outcome is not None:
            return run.outcome
        async with few:
            return await self._learn(run, await self._result(run))

    async def _learn(self, run: Run, result: TaskiqResult[Any] | None) -> RunOutcome | None:
        """What has become of a run by its result, or else as it was remembered; remembers what is new."""
        if result is None:
            return run.outcome
        outcome = _outcome_of(result)
        if isinstance(result.error, ResultVerificationError):
            # Not the run's own end: the genuine result may still come, or have been there already.
            return run.outcome or outcome
        if outcome != run.outcome:
            try:
                await self._runs.update(run._replace(outcome=outcome))
            except (FlowSecurityError, ValueError):
                _logger.exception("What has become of the run %s cannot be remembered.", run.run_id)
        return outcome

    async def _result(self, run: Run) -> TaskiqResult[Any] | None:
        backend = self._broker.result_backend
        try:
            if not await backend.is_result_ready(run.task_id):
                return None
            return await backend.get_result(run.task_id)
        except Exception as error:
            # Each backend raises what its store's client does. The log says what; the caller, that it may pass.
            _logger.exception("The result of the run %s cannot be read.", run.run_id)
            raise BackendUnavailableError("The result cannot be read now.") from error


def warn_if_read_once(backend: AsyncResultBackend[Any]) -> None:
    """Warn at start-up where a result is gone as soon as anybody has looked at its run."""
    inner = backend.inner if isinstance(backend, ProtectedResults) else backend
    if getattr(inner, "keep_results", True) is False:  # so taskiq-redis and taskiq-nats call it
        _logger.warning(
            "The result backend deletes a result when it is read (keep_results=False). The API reads it for the first "
            "who asks for the run or for the list of runs; to others it tells how the run has ended, and no result."
        )


def _outcome_of(result: TaskiqResult[Any]) -> RunOutcome:
    if not result.is_err:
        return RunOutcome(RunState.COMPLETED)
    error = _refusal_behind(result.error) or result.error
    name = type(error).__name__[:_LONGEST_TEXT]
    if isinstance(error, FlowSecurityError):
        return RunOutcome(RunState.REFUSED, name, error.reason, str(error)[:_LONGEST_TEXT])
    if isinstance(error, AbandonedRunError):
        return RunOutcome(RunState.FAILED, name, error.reason, str(error)[:_LONGEST_TEXT])
    return RunOutcome(RunState.FAILED, name)  # what a task's own exception says stays on the server


def _refusal_behind(error: BaseException | None) -> FlowSecurityError | None:
    """The refusal that is the cause of an error: of a step that has collected the results of others, for one."""
    for _ in range(_LONGEST_CHAIN):
        if error is None or isinstance(error, FlowSecurityError):
            return error
        error = error.__cause__
    return None


def _state(outcome: RunOutcome | None) -> RunState:
    return RunState.RUNNING if outcome is None else outcome.state


def _error(outcome: RunOutcome | None) -> RunError | None:
    if outcome is None or outcome.error_type is None:
        return None
    return RunError(type=outcome.error_type, reason=outcome.reason, detail=outcome.detail)


def _as_json(value: object) -> tuple[JsonValue, str | None]:
    """The value as JSON has it, numbers that are none as strings, or why it cannot be shown."""
    try:
        shown: JsonValue = from_json(to_json(value, inf_nan_mode="strings"))
    except Exception:  # noqa: BLE001 (whatever a class of somebody's does when it is written as JSON)
        return None, f"A value of the type {type(value).__name__} that JSON cannot hold."
    return shown, None


def _moment(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, timezone.utc)
