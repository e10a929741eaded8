"""Numbers of any length: who sends one is told so at the kick, and a forged one costs no more than its length."""

from __future__ import annotations

from time import perf_counter

import pytest
from taskiq import TaskiqMessage
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.exceptions import SendTaskError
from taskiq.serializers import CBORSerializer, JSONSerializer

from tests.attacks.forging import read
from tests.integration.inmemory.harness import Process


@pytest.mark.parametrize("serializer", [JSONSerializer, CBORSerializer])
async def test_a_number_that_no_worker_can_read_is_an_error_at_the_kick(
    process: Process, serializer: type[TaskiqSerializer]
) -> None:
    process.broker.with_serializer(serializer())
    with pytest.raises(SendTaskError):
        await process.kick(process.echo, 10**5000)
    assert process.broker.sent == []


async def test_a_forged_number_takes_no_time_that_grows_as_its_square(process: Process) -> None:
    labels = read(await process.genuine()).labels
    process.broker.with_serializer(CBORSerializer())

    def seconds(bits: int) -> float:
        forged = TaskiqMessage(task_id="forged", task_name="clean", labels=labels, args=[], kwargs={}).model_dump()
        data = process.broker.serializer.dumpb({**forged, "args": [1 << bits]})
        taken = []
        for _ in range(3):
            before = perf_counter()
            process.broker.formatter.loads(data)
            taken.append(perf_counter() - before)
        return min(taken)

    small, large = seconds(400_000), seconds(1_600_000)
    assert large < 8 * small + 0.05
