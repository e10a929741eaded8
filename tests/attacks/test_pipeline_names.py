"""The pipeline that decides is the one that the worker knows, and no name of one passes for something else."""

from __future__ import annotations

import pytest

from taskiq_flow_security import AccessDeniedError, ConfigurationError, FlowSecurityError, Principal, TaskiqFlowConfig
from tests.attacks.forging import ABSENT, read, relabelled, sign, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Kickable, Process

LIMITED = Principal("carol", roles=["processor"], pipelines=["data"])


async def test_a_label_that_names_an_allowed_pipeline_does_not_help_at_the_kick(process: Process) -> None:
    with pytest.raises(AccessDeniedError) as refusal:
        await process.kick(process.report.kicker().with_labels(pipeline="data"))
    assert refusal.value.reason == "pipeline_mismatch"


@pytest.mark.parametrize("principal", [PROCESSOR, LIMITED, Principal("root", permissions=["admin"])])
async def test_a_label_that_names_an_allowed_pipeline_does_not_help_a_holder_of_the_key(
    process: Process, principal: Principal
) -> None:
    message = read(await process.kick(process.clean, [1], principal=principal))
    forged = sign(message.model_copy(update={"task_name": "report", "args": []}))
    await process.refuses(write(forged), "pipeline_mismatch", AccessDeniedError)


async def test_a_message_that_names_no_pipeline_is_in_the_one_that_its_task_is_registered_in(process: Process) -> None:
    message = relabelled(read(await process.kick(process.clean, [1])), "pipeline", ABSENT)
    types = {name: kind for name, kind in (message.labels_types or {}).items() if name != "pipeline"}
    forged = message.model_copy(update={"task_name": "report", "args": [], "labels_types": types})
    await process.refuses(write(sign(forged)), "acl", AccessDeniedError)


async def test_a_sender_that_registered_the_task_in_another_pipeline_does_not_decide_for_the_worker(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process()
    api.report.labels["pipeline"] = "data"
    await process.refuses(await api.kick(api.report), "pipeline_mismatch", AccessDeniedError)


async def test_a_sender_that_registered_the_task_in_no_pipeline_does_not_decide_for_the_worker(
    process: Process, new_process: NewProcess
) -> None:
    api = new_process()
    del api.report.labels["pipeline"]
    message = await api.kick(api.report, principal=Principal("carol", roles=["x"], permissions=["execute"]))
    await process.refuses(message, "acl", AccessDeniedError)


NAMES = ["task:loose", "task:report", "task:", "*", "", "data\x00", " data", "DATA", "data\n", "../data", "d\u0430ta"]


async def _kicked(process: Process, name: str, principal: Principal) -> FlowSecurityError:
    with pytest.raises(FlowSecurityError) as refusal:
        await process.kick(_named(process, name), principal=principal)
    assert process.broker.sent == []
    return refusal.value


def _named(process: Process, name: str) -> Kickable:
    return process.loose.kicker().with_labels(pipeline=name)


@pytest.mark.parametrize("name", NAMES)
async def test_a_pipeline_of_a_misleading_name_does_not_pass_for_an_allowed_one(process: Process, name: str) -> None:
    principal = Principal("carol", roles=["processor"], permissions=["execute"], pipelines=["data", "reports"])
    assert await _kicked(process, name, principal)


@pytest.mark.parametrize("name", ["task:loose", "task:report", "task:", "*", ""])
async def test_a_pipeline_of_a_reserved_name_is_denied_to_everybody(process: Process, name: str) -> None:
    principal = Principal("root", permissions=["admin", "execute"], pipelines=["task:loose", "task:", "*"])
    error = await _kicked(process, name, principal)
    assert getattr(error, "reason", None) == "invalid_request"


@pytest.mark.parametrize("name", ["task:loose", "*", ""])
async def test_a_pipeline_of_a_reserved_name_is_denied_on_the_worker_too(process: Process, name: str) -> None:
    principal = Principal("root", permissions=["admin"])
    message = relabelled(read(await process.kick(process.loose, principal=principal)), "pipeline", name)
    await process.refuses(write(sign(message)), "invalid_request", AccessDeniedError)


@pytest.mark.parametrize("value", [7, True, 1.5, ["data"], {"data": "data"}])
async def test_a_pipeline_that_is_no_string_is_denied_on_the_worker(process: Process, value: object) -> None:
    principal = Principal("root", permissions=["admin"])
    message = relabelled(read(await process.kick(process.loose, principal=principal)), "pipeline", value)
    await process.refuses(write(sign(message)), "invalid_label", AccessDeniedError)


async def test_a_whitelist_of_tasks_does_not_open_a_pipeline_of_that_name(process: Process) -> None:
    principal = Principal("carol", permissions=["execute"], pipelines=["task:loose"])
    await process.runs(await process.kick(process.loose, principal=principal))
    assert await _kicked(process, "task:loose", principal)


async def test_a_whitelist_of_pipelines_does_not_open_tasks_without_one(process: Process) -> None:
    with pytest.raises(AccessDeniedError) as refusal:
        await process.kick(process.loose, principal=LIMITED)
    assert refusal.value.reason == "whitelist"


@pytest.mark.parametrize("name", ["task:x", "*", ""])
def test_an_acl_cannot_be_written_for_a_reserved_name(name: str) -> None:
    with pytest.raises(ConfigurationError):
        TaskiqFlowConfig(pipeline_acls={name: {"execute": ["processor"]}})


def test_a_wildcard_is_no_role() -> None:
    with pytest.raises(ConfigurationError):
        TaskiqFlowConfig(pipeline_acls={"data": {"execute": ["*"]}})
