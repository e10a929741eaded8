"""The graph of a pipeline, and what follows from it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import InMemoryBroker
from taskiq_flow.dataflow.dag import DAG, DAGNode
from taskiq_flow.visualization import DAGVisualizer

from taskiq_flow_security import ConfigurationError
from taskiq_flow_security.pipelines import Edge, Graph, Node

MOST_NODES = 8


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any directed acyclic graph: edges lead from a lower number to a higher one."""
    size = draw(st.integers(1, MOST_NODES))
    pairs = [(low, high) for high in range(size) for low in range(high)]
    edges = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    order = draw(st.permutations(range(size)))
    return graph([str(number) for number in order], *((str(low), str(high)) for low, high in sorted(edges)))


def graph(nodes: list[str], *edges: tuple[str, str]) -> Graph:
    return Graph.of(
        (Node(id=node, task=node) for node in nodes),
        (Edge(source=source, target=target) for source, target in edges),
    )


@given(graphs())
def test_a_step_is_in_a_later_group_than_all_that_it_needs(graph: Graph) -> None:
    group_of = {step: number for number, group in enumerate(graph.parallel_groups()) for step in group}
    assert sorted(group_of) == sorted(node.id for node in graph.nodes)
    assert all(group_of[edge.source] < group_of[edge.target] for edge in graph.edges)


@given(graphs())
def test_a_critical_path_follows_edges_through_every_group(graph: Graph) -> None:
    path = graph.critical_path()
    edges = {(edge.source, edge.target) for edge in graph.edges}
    assert set(pairwise(path)) <= edges
    assert len(path) == len(graph.parallel_groups())


@given(graphs())
def test_groups_and_the_length_of_the_path_are_those_that_taskiq_flow_finds(graph: Graph) -> None:
    broker = InMemoryBroker()
    dag = DAG()
    nodes = {node.id: DAGNode(broker.register_task(_nothing, node.id)) for node in graph.nodes}
    for node in nodes.values():
        dag.add_node(node)
    for edge in graph.edges:
        dag.add_edge(nodes[edge.source], nodes[edge.target])
    dag.compute_levels()
    theirs = [set(group) for group in DAGVisualizer.find_parallelizable_groups(dag)]
    assert [set(group) for group in graph.parallel_groups()] == theirs
    assert len(graph.critical_path()) == len(DAGVisualizer.detect_critical_path(dag))


def test_a_chain_joins_each_step_with_the_next() -> None:
    chain = Graph.chain(Node(id=name, task="step") for name in "abc")
    assert chain.critical_path() == ["a", "b", "c"]
    assert chain.parallel_groups() == [["a"], ["b"], ["c"]]


def test_a_graph_without_steps_has_no_path() -> None:
    assert graph([]).critical_path() == []
    assert graph([]).parallel_groups() == []


@pytest.mark.parametrize(
    ("nodes", "edges"),
    [
        (["a", "a"], []),
        (["a"], [("a", "b")]),
        (["a"], [("b", "a")]),
        (["a"], [("a", "a")]),
        (["a", "b"], [("a", "b"), ("b", "a")]),
    ],
)
def test_what_is_no_acyclic_graph_is_refused(nodes: list[str], edges: list[tuple[str, str]]) -> None:
    with pytest.raises(ConfigurationError):
        graph(nodes, *edges)


async def _nothing() -> None:
    """A task."""
