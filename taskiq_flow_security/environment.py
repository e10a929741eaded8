"""How settings are read from environment variables."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource

_logger = logging.getLogger(__name__)

PREFIX = "TASKIQ_FLOW_"


class Variables(EnvSettingsSource):
    """Environment variables, in whose JSON no name may stand twice: the last one would win, unseen. Nor may it be null,
    which pydantic-settings takes for a variable that is not there.
    """

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """The value of a variable that holds JSON."""
        decoded = json.loads(value, object_pairs_hook=names_once)
        if decoded is None:
            raise ValueError("null")
        return decoded


def warn_of_unknown(fields: set[str]) -> None:
    """Warn of variables that look like settings and are none; taskiq-flow has some of its own with the same prefix."""
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable[len(PREFIX) :].lower() not in fields:
            _logger.warning("%s is not a setting of taskiq_flow_security; check the spelling.", variable)


def names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises `ValueError` if a name stands twice in it."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a name stands twice in one object")
    return dict(pairs)
