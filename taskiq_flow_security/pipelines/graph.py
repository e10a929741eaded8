"""What a pipeline consists of: steps, and which of them needs which."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field

from taskiq_flow_security.core.string_enum import StringEnum
from taskiq_flow_security.errors import ConfigurationError


class StepKind(StringEnum):
    """How a step runs its task."""

    TASK = "task"
    """Once."""
    MAP = "map"
    """Once for each item of what the step before has returned; the results are collected."""
    FILTER = "filter"
    """The same, and the items are kept for which it returns something true."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(_Frozen):
    """One step."""

    id: str = Field(description="Names the step within its pipeline.")
    task: str = Field(description="The name of the task that it runs.")
    kind: StepKind = Field(default=StepKind.TASK, description="Whether it runs once, or for each item of its input.")


class Edge(_Frozen):
    """One step that needs another."""

    source: str = Field(description="The step that comes first.")
    target: str = Field(description="The step that needs it.")


class Graph(_Frozen):
    """The steps of a pipeline, a directed acyclic graph. Make it with `Graph.of`, which checks that."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()

    @classmethod
    def of(cls, nodes: Iterable[Node], edges: Iterable[Edge] = ()) -> Graph:
        """A graph of these. Raises `ConfigurationError` if it is none, or has a cycle."""
        graph = cls(nodes=tuple(nodes), edges=tuple(edges))
        ids = {node.id for node in graph.nodes}
        if len(ids) != len(graph.nodes) or not ids.issuperset(
            end for edge in graph.edges for end in (edge.source, edge.target)
        ):
            raise ConfigurationError("Each step of a pipeline needs an id of its own, and an edge joins two of them.")
        try:
            graph.parallel_groups()
        except CycleError:
            raise ConfigurationError("The steps of the pipeline need each other in a circle.") from None
        return graph

    @classmethod
    def chain(cls, nodes: Iterable[Node]) -> Graph:
        """The graph of steps that run one after the other."""
        steps = tuple(nodes)
        return cls.of(steps, (Edge(source=first.id, target=second.id) for first, second in pairwise(steps)))

    def parallel_groups(self) -> list[list[str]]:
        """The ids of the steps in the order in which they can run; those of one group can run at the same time."""
        sorter = self._sorter()
        sorter.prepare()
        groups = []
        while ready := sorter.get_ready():
            sorter.done(*ready)
            groups.append(list(ready))
        return groups

    def critical_path(self) -> list[str]:
        """The ids of a longest chain of steps, each of which needs the one before."""
        sources: dict[str, list[str]] = {node.id: [] for node in self.nodes}
        for edge in self.edges:
            sources[edge.target].append(edge.source)
        longest: dict[str, tuple[int, str | None]] = {}
        """By step: the length of the longest chain that ends with it, and the step before in that chain."""
        for step in self._sorter().static_order():
            before = max(sources[step], key=lambda source: longest[source][0], default=None)
            longest[step] = (1, None) if before is None else (longest[before][0] + 1, before)
        path: list[str] = []
        end = max(longest, key=lambda step: longest[step][0], default=None)
        while end is not None:
            path.append(end)
            end = longest[end][1]
        return path[::-1]

    def _sorter(self) -> TopologicalSorter[str]:
        sorter: TopologicalSorter[str] = TopologicalSorter({node.id: () for node in self.nodes})
        for edge in self.edges:
            sorter.add(edge.target, edge.source)
        return sorter
