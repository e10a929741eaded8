"""What a message asks for, in the words of the policy. The same on both sides of the wire."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_type_hints

from taskiq.message import TaskiqMessage
from taskiq.receiver.params_parser import parse_params
from taskiq_dependencies import DependencyGraph

from taskiq_flow_security.broker.delivery import Task
from taskiq_flow_security.broker.guard import guard_of
from taskiq_flow_security.broker.wire import PIPELINE_LABEL, read_label
from taskiq_flow_security.core.guard import Arguments, Guard
from taskiq_flow_security.core.policy import AccessRequest, Decision, is_pipeline_name
from taskiq_flow_security.core.principal import Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AccessDeniedError, ConfigurationError

_EXECUTE = Permission.EXECUTE


def access_request(message: TaskiqMessage, task: Task | None) -> AccessRequest:
    """The request that running this message is. `task` is the task as it is registered in this process, if it is.

    Raises `AccessDeniedError` where the message does not fit the registered task.
    """
    pipeline = _pipeline(message, task)
    if gives_dependency(message, task):
        raise AccessDeniedError(
            Reason.DEPENDENCY_IN_ARGUMENTS,
            "The message gives an argument that the worker is to resolve as a dependency: its caller, a context, a "
            "connection; leave it out.",
        )
    guard = registered_guard(task)
    if task is None or guard is None or guard.predicate is None:
        return AccessRequest(_EXECUTE, pipeline, message.task_name, guard)
    return AccessRequest(_EXECUTE, pipeline, message.task_name, guard, _arguments(message, task))


def gives_dependency(message: TaskiqMessage, task: Task | None) -> bool:
    """Whether a message gives an argument that would take the place of a dependency."""
    if not message.kwargs or task is None:
        return False
    return not _dependencies(task.original_func).isdisjoint(message.kwargs)


def access_denied(principal: Principal, request: AccessRequest, decision: Decision) -> AccessDeniedError:
    """The error that says which rule denied what."""
    return AccessDeniedError(
        decision.reason,
        f"{principal.subject} may not {request.permission} {request.resource}, by the rule {decision.rule}.",
    )


def registered_pipeline(task: Task | None) -> str | None:
    """The pipeline that a task belongs to by registration; of a member of a string enum, that is its value."""
    pipeline = None if task is None else task.labels.get(PIPELINE_LABEL)
    return str.__str__(pipeline) if isinstance(pipeline, str) else pipeline


def registered_guard(task: Task | None) -> Guard | None:
    """What a task asks on top of the policy, if it does."""
    return None if task is None else guard_of(task.original_func)


def check_pipeline(task: Task) -> None:
    """Raise `ConfigurationError` for a task whose pipeline no ACL can name."""
    pipeline = task.labels.get(PIPELINE_LABEL)
    if not (pipeline is None or isinstance(pipeline, str)):
        raise ConfigurationError(
            f"The pipeline of the task {task.task_name} is of the type {type(pipeline).__name__}; name it by a string."
        )
    if pipeline is not None and not is_pipeline_name(str.__str__(pipeline)):
        raise ConfigurationError(
            f"The pipeline of the task {task.task_name} cannot be named {str.__str__(pipeline)!r}: that stands for all "
            "pipelines, a task or an endpoint."
        )


@lru_cache(maxsize=4096)
def _dependencies(function: Callable[..., Any]) -> frozenset[str]:
    """The parameters that TaskIQ resolves, by its own account, however they are marked. It lets a message's arguments
    take their place (0.13, `run_task`).
    """
    resolved = DependencyGraph(function).dependencies.items()
    return frozenset(
        found.param_name for owner, all_found in resolved if owner.dependency is function for found in all_found
    )


def _pipeline(message: TaskiqMessage, task: Task | None) -> str | None:
    registered = registered_pipeline(task)
    if message.labels.get(PIPELINE_LABEL) == registered:
        return registered  # as TaskIQ puts it there, a string or nothing
    named = read_label(message, PIPELINE_LABEL)
    if named is not None and not isinstance(named, str):
        raise AccessDeniedError(Reason.INVALID_LABEL, "The label pipeline must be a string.")
    if registered is None:
        return named
    if named not in (None, registered):
        raise AccessDeniedError(
            Reason.PIPELINE_MISMATCH,
            "The task belongs to another pipeline than the message names.",
        )
    return registered


def _arguments(message: TaskiqMessage, task: Task) -> Arguments:
    """The arguments by name and of the types that the function declares, as TaskIQ will parse them for the call."""
    function = task.original_func
    signature = inspect.signature(function)
    parsed = message.model_copy(update={"args": list(message.args), "kwargs": dict(message.kwargs)})
    parse_params(signature, get_type_hints(function), parsed)
    try:
        given = signature.bind_partial(*parsed.args, **parsed.kwargs).arguments
    except TypeError:
        raise AccessDeniedError(
            Reason.GUARD,
            "The arguments do not fit the task's parameters, so its guard cannot decide.",
        ) from None
    resolved = _dependencies(function)
    return {
        name: given.get(name, parameter.default)
        for name, parameter in signature.parameters.items()
        if name in given or not (parameter.default is parameter.empty or name in resolved)
    }
