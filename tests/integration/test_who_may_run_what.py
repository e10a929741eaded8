"""A real worker runs what its own configuration allows, and tells the caller why it runs nothing else."""

from __future__ import annotations

import pytest

from taskiq_flow_security import AccessDeniedError, Principal
from tests.integration import ledger
from tests.integration.client import Client, result_of
from tests.integration.messages import Signer
from tests.integration.settings import (
    API_KEY,
    PROCESSOR,
    REMOVED_API_KEY,
    VIEWER,
    caller_config,
)
from tests.integration.worker_app import MOST_ROWS, clean, import_rows, purge


async def test_an_allowed_task_runs_and_its_result_comes_back(client: Client) -> None:
    marker = client.new_marker()
    result = await result_of(await client.kick(clean, PROCESSOR, marker, [1, 2, 3]))
    assert result.error is None
    assert result.return_value == 6
    assert ledger.runs(marker) == 1


async def test_a_task_allowed_to_an_api_key_runs(client: Client) -> None:
    marker = client.new_marker()
    principal = await client.security.authenticate(api_key=API_KEY)
    result = await result_of(await client.kick(clean, principal, marker, [1]))
    assert result.error is None
    assert ledger.runs(marker) == 1


async def test_a_guarded_task_runs_and_knows_its_caller(client: Client) -> None:
    marker = client.new_marker()
    result = await result_of(await client.kick(import_rows, PROCESSOR, marker, [1, 2]))
    assert result.error is None
    assert result.return_value == "alice imported 2"
    assert ledger.runs(marker) == 1


async def test_a_task_that_the_workers_own_acl_denies_does_not_run(
    client: Client,
) -> None:
    marker = client.new_marker()
    result = await result_of(await client.kick(purge, PROCESSOR, marker))
    with pytest.raises(AccessDeniedError) as refusal:
        result.raise_for_error()
    assert refusal.value.reason == "acl"
    assert ledger.runs(marker) == 0


async def test_a_task_kicked_with_an_api_key_that_the_worker_no_longer_has_does_not_run(
    client: Client,
) -> None:
    marker = client.new_marker()
    principal = await client.security.authenticate(api_key=REMOVED_API_KEY)
    result = await result_of(await client.kick(clean, principal, marker, [1]))
    with pytest.raises(AccessDeniedError) as refusal:
        result.raise_for_error()
    assert refusal.value.reason == "api_key_removed"
    assert ledger.runs(marker) == 0


@pytest.mark.parametrize(
    ("principal", "rows", "reason"),
    [
        (PROCESSOR, MOST_ROWS + 1, "guard"),
        (VIEWER, 1, "acl"),
        (Principal("root", roles=["administrator"], permissions=["admin"]), 1, "guard"),
    ],
    ids=["predicate", "policy", "role"],
)
async def test_a_signed_message_that_its_sender_should_not_have_let_through_does_not_run(
    client: Client, principal: Principal, rows: int, reason: str
) -> None:
    marker = client.new_marker()
    message = Signer(caller_config()).sign(import_rows, marker, [0] * rows, principal=principal)
    result = await result_of(await client.inject(message))
    with pytest.raises(AccessDeniedError) as refusal:
        result.raise_for_error()
    assert refusal.value.reason == reason
    assert ledger.runs(marker) == 0


async def test_the_caller_itself_is_told_of_what_its_own_configuration_denies(
    client: Client,
) -> None:
    marker = client.new_marker()
    with pytest.raises(AccessDeniedError) as refusal:
        await client.kick(clean, VIEWER, marker, [1])
    assert refusal.value.reason == "acl"
    await client.settle()
    assert ledger.runs(marker) == 0
