"""What becomes of an error that keeps a decision from being made."""

from __future__ import annotations

import logging

from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import AccessDeniedError, FlowSecurityError


def denial_of(error: Exception, logger: logging.Logger, what: str) -> FlowSecurityError:
    """The error by which something is denied that an error has kept from being decided about.

    Ours are that themselves. Any other is logged as what has happened to `what`, and says nothing to anybody else.
    """
    if isinstance(error, FlowSecurityError):
        return error
    logger.error("%s cannot be decided about because of an unexpected error.", what, exc_info=error)
    return internal_error()


def internal_error() -> AccessDeniedError:
    """The error for what nobody has thought of."""
    return AccessDeniedError(
        Reason.INTERNAL_ERROR, "An unexpected error kept this process from deciding; its log has it."
    )


def denial_in(error: Exception) -> FlowSecurityError | None:
    """The denial that an error is, or the first one of a task group that has failed with nothing but denials."""
    if isinstance(error, FlowSecurityError):
        return error
    # By its name, as Python 3.10 has none of its own.
    is_group = "ExceptionGroup" in [kind.__name__ for kind in type(error).__mro__]
    within = getattr(error, "exceptions", None)
    denials = [denial_in(each) for each in within] if is_group and isinstance(within, tuple) else []
    return denials[0] if denials and None not in denials else None
