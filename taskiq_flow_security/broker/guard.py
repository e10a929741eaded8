"""`guard`: what one task asks of its caller, and that it runs under no other circumstances."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

from limits import parse_many
from taskiq import Context, TaskiqDepends
from taskiq.decor import AsyncTaskiqDecoratedTask

from taskiq_flow_security import acting
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.broker import delivery as deliveries
from taskiq_flow_security.core.guard import Guard, Predicate
from taskiq_flow_security.core.principal import Permission, Principal
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AccessDeniedError, ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])

_GUARD = "__taskiq_flow_guard__"
_PARAMETER = "_taskiq_flow_admission"


@dataclass(frozen=True, slots=True)
class Admission:
    """Shows a guarded function that `SecurityMiddleware` has let it run. No message can carry one."""

    principal: Principal
    txn: str


def guard(
    *misplaced: NoReturn,
    permission: Permission | str | None = None,
    roles: Iterable[str] = (),
    predicate: Predicate | None = None,
    rate_limit: str | None = None,
    at_most_once: bool = False,
) -> Callable[[F], F]:
    """Ask more of a task's caller than the policy does; every part that is given must hold.

    Stands below the task decorator, on the function itself::

        @broker.task(pipeline="data-pipeline")
        @guard(roles=["processor"])
        async def clean(rows: list[int]) -> int: ...

    `permission` must be among the principal's explicit permissions, for which ``admin`` does not stand in; a principal
    without explicit permissions needs it from the ACLs. Of `roles`, it needs one. `predicate` is called with the
    principal and the arguments by name, and must return ``True``.
    `rate_limit`, such as ``"10/minute"``, holds for each principal at the kick; where the sender does not know the
    task, on the worker.
    With `at_most_once`, a message runs no second time even where a worker was killed in the middle of it: whoever waits
    gets an error then. That needs a shared store.

    A guarded function runs only when a worker with `SecurityMiddleware` has admitted the message; without the
    middleware, or called directly, it raises `AccessDeniedError`. Raises `ConfigurationError` if it cannot be guarded.
    """
    if misplaced:
        raise ConfigurationError('guard: say by name what is asked for, as in @guard(roles=["processor"]).')
    if isinstance(roles, str):
        raise ConfigurationError(f'guard: roles must be a list of names; write roles=["{roles}"].')
    roles = tuple(roles) if isinstance(roles, Iterable) else (roles,)
    if not all(isinstance(role, str) for role in roles):
        raise ConfigurationError("guard: roles must be a list of names; leave it out where the task needs none.")
    try:
        needed = None if permission is None else Permission(permission)
    except ValueError:
        raise ConfigurationError(f"guard: permission must be one of {', '.join(Permission)}.") from None
    if predicate is not None and not _is_plain_function(predicate):
        raise ConfigurationError("guard: predicate must be a plain function; it decides, it does not wait.")
    if rate_limit is not None:
        try:
            parse_many(rate_limit)
        except ValueError:
            raise ConfigurationError('guard: write rate_limit like "10/minute".') from None
    rule = Guard(needed, frozenset(roles), predicate, rate_limit, at_most_once)

    def decorate(function: F) -> F:
        if isinstance(function, AsyncTaskiqDecoratedTask):
            raise ConfigurationError("guard: write @guard below @broker.task, directly on the function.")
        if guard_of(function) is not None:
            raise ConfigurationError("guard: the function is guarded already; ask for everything in one @guard.")
        return _guarded(function, rule)

    return decorate


def _is_plain_function(predicate: object) -> bool:
    called = getattr(predicate, "__call__", None)  # noqa: B004 (what it is, not whether)
    return callable(predicate) and not any(map(inspect.iscoroutinefunction, (predicate, called)))


def guard_of(function: Callable[..., Any]) -> Guard | None:
    """The guard of a task's function."""
    return getattr(function, _GUARD, None)


def admission(context: Annotated[Context, TaskiqDepends()]) -> Admission:
    """The dependency that every guarded function has: TaskIQ resolves it before the function is called."""
    delivery = deliveries.current.get()
    actor = acting.current()
    if delivery is None or delivery.admitted is None or actor is None:
        raise _not_admitted()
    if delivery.broker is not context.broker or delivery.task_id != context.message.task_id:
        raise _not_admitted()  # the context is that of a task which kicked this one on a broker that nobody secures
    return Admission(delivery.admitted, actor.txn)


def _guarded(function: F, rule: Guard) -> F:
    # Dependencies are resolved in the worker's own process, also for a process pool, where no context would arrive.
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_async(*args: Any, _taskiq_flow_admission: object = None, **kwargs: Any) -> Any:
            with _admitted(_taskiq_flow_admission):
                return await function(*args, **kwargs)

        wrapper: Callable[..., Any] = run_async
    else:

        @functools.wraps(function)
        def run(*args: Any, _taskiq_flow_admission: object = None, **kwargs: Any) -> Any:
            with _admitted(_taskiq_flow_admission):
                return function(*args, **kwargs)

        wrapper = run

    signature = inspect.signature(function, eval_str=True)
    parameter = inspect.Parameter(
        _PARAMETER,
        inspect.Parameter.KEYWORD_ONLY,
        default=TaskiqDepends(admission),
        annotation=Admission,
    )
    others = list(signature.parameters.values())
    position = len(others) - any(other.kind is inspect.Parameter.VAR_KEYWORD for other in others)
    others.insert(position, parameter)
    wrapper.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]  # see PEP 362
    setattr(wrapper, _GUARD, rule)
    return wrapper  # type: ignore[return-value]  # it has the function's own signature, and one parameter more


@contextmanager
def _admitted(given: object) -> Iterator[None]:
    if not isinstance(given, Admission):
        raise _not_admitted()
    actor = acting.current()
    if actor is None or actor.principal is not given.principal:  # in a process pool
        with acting.scope(Acting(given.principal, given.txn, owner=None)):
            yield
    else:
        yield


def _not_admitted() -> AccessDeniedError:
    return AccessDeniedError(
        Reason.NOT_VERIFIED,
        "A guarded task runs only where SecurityMiddleware has verified its message; add the middleware to the "
        "worker's broker, and kick the task instead of calling it.",
    )
