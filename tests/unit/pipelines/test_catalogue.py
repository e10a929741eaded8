"""What can be added as a pipeline, under which id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import taskiq_flow
import taskiq_pipelines
from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker

from taskiq_flow_security import ConfigurationError
from taskiq_flow_security.pipelines import Catalogue, Graph, InputError, Node, Pipeline, StepKind


class Own:
    """A pipeline that meets the protocol and nothing more."""

    def __init__(self, pipeline_id: str) -> None:
        self.id = pipeline_id
        self.graph = Graph.of([Node(id="one", task="one")])

    async def start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Run nothing."""
        return "task-id"


async def double(value: int) -> int:
    """A task."""
    return 2 * value


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


@pytest.fixture
def catalogue(broker: InMemoryBroker) -> Catalogue:
    return Catalogue(broker, patience=60)


@pytest.fixture
def task(broker: InMemoryBroker) -> AsyncTaskiqDecoratedTask[Any, Any]:
    return broker.register_task(double, "double")


def added(catalogue: Catalogue, pipeline: object) -> Pipeline:
    catalogue.add("some", pipeline)
    found = catalogue.get("some")
    assert found is not None
    assert found.id == "some"
    return found


def test_a_pipeline_of_ones_own_is_served_as_it_is(catalogue: Catalogue) -> None:
    own = Own("some")
    assert added(catalogue, own) is own


def test_a_task_is_a_pipeline_of_one_step(catalogue: Catalogue, task: AsyncTaskiqDecoratedTask[Any, Any]) -> None:
    assert added(catalogue, task).graph == Graph.of([Node(id="double", task="double")])


@pytest.mark.parametrize("library", [taskiq_flow, taskiq_pipelines])
def test_a_list_of_steps_is_a_chain(
    catalogue: Catalogue, broker: InMemoryBroker, task: AsyncTaskiqDecoratedTask[Any, Any], library: Any
) -> None:
    pipeline = library.Pipeline(broker, task).map(task).filter(task).call_after(task)
    graph = added(catalogue, pipeline).graph
    assert [node.kind for node in graph.nodes] == [StepKind.TASK, StepKind.MAP, StepKind.FILTER, StepKind.TASK]
    assert graph.critical_path() == ["1:double", "2:double", "3:double", "4:double"]


def test_a_dataflow_pipeline_is_a_graph(catalogue: Catalogue, broker: InMemoryBroker) -> None:
    @broker.task("load")
    @taskiq_flow.pipeline_task(output="rows")
    async def load() -> list[int]:
        return [1]

    @broker.task("sum")
    @taskiq_flow.pipeline_task(output="sum", inputs=["rows"])
    async def add(rows: list[int]) -> int:
        return sum(rows)

    @broker.task("count")
    @taskiq_flow.pipeline_task(output="count", inputs=["rows"])
    async def count(rows: list[int]) -> int:
        return len(rows)

    graph = added(catalogue, taskiq_flow.DataflowPipeline.from_tasks(broker, [load, add, count])).graph
    assert [sorted(group) for group in graph.parallel_groups()] == [["load"], ["count", "sum"]]


async def test_a_dataflow_pipeline_takes_its_inputs_by_name(catalogue: Catalogue, broker: InMemoryBroker) -> None:
    task = broker.register_task(taskiq_flow.pipeline_task(output="double")(double), "double")
    pipeline = added(catalogue, taskiq_flow.DataflowPipeline.from_tasks(broker, [task]))
    with pytest.raises(InputError):
        await pipeline.start([1], {})


def test_a_task_whose_pipeline_no_other_task_has_is_one_without_being_added(
    catalogue: Catalogue, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name, label in (("a", "alone"), ("b", "shared"), ("c", "shared"), ("d", "not/an/id")):
        broker.register_task(double, name, pipeline=label)
    broker.register_task(double, "e")
    assert [pipeline.id for pipeline in catalogue] == ["alone"]
    assert catalogue.get("shared") is None
    list(catalogue)  # once more
    for why in (
        "'not/an/id' makes no pipeline of one step: it cannot be the id",
        "'shared' makes no pipeline of one step: 2 tasks",
    ):
        assert caplog.text.count(f"The label {why}") == 1
    assert "'alone'" not in caplog.text


def test_what_is_added_goes_before_a_task_of_that_pipeline(
    catalogue: Catalogue, broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    broker.register_task(double, "double", pipeline="some")
    own = Own("some")
    assert added(catalogue, own) is own
    assert list(catalogue) == [own]
    broker.register_task(double, "another", pipeline="some")
    assert list(catalogue) == [own]
    assert "'some'" not in caplog.text


@pytest.mark.parametrize(
    "pipeline_id",
    [5, "", "*", ".", "..", "a/b", "../x", "a\\b", "a%2fb", "task:clean", "endpoint:x", "a\n", " a", "\x00", "x" * 201],
)
def test_an_id_that_the_policy_or_a_path_could_misread_is_refused(catalogue: Catalogue, pipeline_id: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the id"):
        catalogue.add(pipeline_id, Own(pipeline_id))


@pytest.mark.parametrize("pipeline_id", ["a", "a.b", "...", "täglich", "a b", "a?b#c", "x" * 200])
def test_any_other_id_is_taken(catalogue: Catalogue, pipeline_id: str) -> None:
    catalogue.add(pipeline_id, Own(pipeline_id))
    assert [pipeline.id for pipeline in catalogue] == [pipeline_id]


def test_an_id_is_taken_once(catalogue: Catalogue) -> None:
    catalogue.add("some", Own("some"))
    with pytest.raises(ConfigurationError, match="already"):
        catalogue.add("some", Own("some"))


def test_a_pipeline_keeps_its_own_id(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigurationError, match="calls itself"):
        catalogue.add("some", Own("other"))


def test_a_task_keeps_the_pipeline_that_it_is_registered_with(catalogue: Catalogue, broker: InMemoryBroker) -> None:
    with pytest.raises(ConfigurationError, match="another pipeline"):
        catalogue.add("some", broker.register_task(double, "double", pipeline="other"))


@pytest.mark.parametrize("given", [None, 1, "double", object(), double])
def test_what_is_no_pipeline_is_refused(catalogue: Catalogue, given: object) -> None:
    with pytest.raises(ConfigurationError, match="is no pipeline"):
        catalogue.add("some", given)


@pytest.mark.parametrize("library", [taskiq_flow, taskiq_pipelines])
def test_a_pipeline_that_would_be_kicked_over_another_broker_is_refused(catalogue: Catalogue, library: Any) -> None:
    other = InMemoryBroker()
    pipeline = library.Pipeline(other, other.register_task(double, "double"))
    with pytest.raises(ConfigurationError, match="another broker"):
        catalogue.add("some", pipeline)


def test_a_dataflow_pipeline_with_a_task_of_another_broker_is_refused(
    catalogue: Catalogue, broker: InMemoryBroker
) -> None:
    task = InMemoryBroker().register_task(taskiq_flow.pipeline_task(output="double")(double), "double")
    with pytest.raises(ConfigurationError, match="another broker"):
        catalogue.add("some", taskiq_flow.DataflowPipeline.from_tasks(broker, [task]))


def test_a_task_of_another_broker_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigurationError, match="another broker"):
        catalogue.add("some", InMemoryBroker().register_task(double, "double"))


def test_a_group_step_is_refused_as_taskiq_flow_never_ends_a_run_after_it(
    catalogue: Catalogue, broker: InMemoryBroker, task: AsyncTaskiqDecoratedTask[Any, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="never ends"):
        catalogue.add("some", taskiq_flow.Pipeline(broker, task).group([task, task]))


@pytest.mark.parametrize("library", [taskiq_flow, taskiq_pipelines])
def test_a_list_of_steps_must_begin_with_one_task(
    catalogue: Catalogue, broker: InMemoryBroker, task: AsyncTaskiqDecoratedTask[Any, Any], library: Any
) -> None:
    for pipeline in (library.Pipeline(broker), library.Pipeline(broker).map(task)):
        with pytest.raises(ConfigurationError, match="must begin"):
            catalogue.add("some", pipeline)


def test_a_dataflow_pipeline_with_map_operations_is_refused(catalogue: Catalogue, broker: InMemoryBroker) -> None:
    task = broker.register_task(taskiq_flow.pipeline_task(output="double")(double), "double")
    pipeline = taskiq_flow.DataflowPipeline(broker).map(task, [1, 2], output="doubles")
    with pytest.raises(ConfigurationError, match="map and reduce"):
        catalogue.add("some", pipeline)
