"""What became of a run, as the result backend knows it."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json, to_json
from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.result import TaskiqResult

from taskiq_flow_security.errors import BackendUnavailableError, FlowSecurityError
from taskiq_flow_security.http.api.models import RunDetails, RunError, RunState, RunSummary
from taskiq_flow_security.runs.records import Run

_logger = logging.getLogger(__name__)


async def summary(run: Run, backend: AsyncResultBackend[Any]) -> RunSummary:
    """A run and its state. Raises `BackendUnavailableError` if nobody can tell now."""
    result = await _result(run, backend)
    return RunSummary(run_id=run.run_id, state=_state(result), subject=run.subject, started_at=_moment(run.started_at))


async def details(run: Run, backend: AsyncResultBackend[Any]) -> RunDetails:
    """A run and its result. Raises `BackendUnavailableError` if nobody can tell now."""
    result = await _result(run, backend)
    value, problem = (None, None) if result is None or result.is_err else _as_json(result.return_value)
    return RunDetails(
        pipeline_id=run.pipeline_id,
        run_id=run.run_id,
        state=_state(result),
        subject=run.subject,
        started_at=_moment(run.started_at),
        result=value,
        result_problem=problem,
        error=_error(result.error) if result is not None and result.is_err else None,
    )


async def _result(run: Run, backend: AsyncResultBackend[Any]) -> TaskiqResult[Any] | None:
    try:
        if not await backend.is_result_ready(run.task_id):
            return None
        return await backend.get_result(run.task_id)
    except Exception as error:
        # Each backend raises what its store's client does. The log says what; the caller, that it may pass.
        _logger.exception("The result of the run %s cannot be read.", run.run_id)
        raise BackendUnavailableError("The result cannot be read now.") from error


def _state(result: TaskiqResult[Any] | None) -> RunState:
    if result is None:
        return RunState.RUNNING
    if not result.is_err:
        return RunState.COMPLETED
    return RunState.REFUSED if isinstance(result.error, FlowSecurityError) else RunState.FAILED


def _error(error: BaseException | None) -> RunError:
    if isinstance(error, FlowSecurityError):
        return RunError(type=type(error).__name__, reason=getattr(error, "reason", None), detail=str(error))
    return RunError(type=type(error).__name__)


def _as_json(value: object) -> tuple[JsonValue, str | None]:
    """The value as JSON has it, numbers that are none as strings, or why it cannot be shown."""
    try:
        shown: JsonValue = from_json(to_json(value, inf_nan_mode="strings"))
    except Exception:  # noqa: BLE001 (whatever a class of somebody's does when it is written as JSON)
        return None, f"A value of the type {type(value).__name__} that JSON cannot hold."
    return shown, None


def _moment(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, timezone.utc)
