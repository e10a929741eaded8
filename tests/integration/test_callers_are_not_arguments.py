"""A real worker tells a task who has kicked it, not who a message says has."""

from __future__ import annotations

from tests.integration.client import Client, result_of
from tests.integration.settings import PROCESSOR
from tests.integration.worker_app import import_rows

ROOT: dict[str, object] = {"subject": "root", "roles": [], "permissions": None, "pipelines": [], "api_key_id": None}
DETAILS: dict[str, object] = {"txn": None, "expires_at": None}


async def test_a_caller_among_the_arguments_is_not_believed(client: Client) -> None:
    marker = client.new_marker()
    try:
        kicked = await client.kick(import_rows, PROCESSOR, marker, [1], caller=ROOT | DETAILS)  # type: ignore[arg-type]
    except Exception:
        return
    result = await result_of(kicked)
    assert result.is_err or result.return_value == "alice imported 1"
