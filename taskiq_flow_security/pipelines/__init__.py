"""What can be shown and started as a pipeline, whichever library it comes from."""

from taskiq_flow_security.pipelines.catalogue import Catalogue
from taskiq_flow_security.pipelines.graph import Edge, Graph, Node, StepKind
from taskiq_flow_security.pipelines.protocol import AbandonedRunError, InputError, Pipeline

__all__ = ["AbandonedRunError", "Catalogue", "Edge", "Graph", "InputError", "Node", "Pipeline", "StepKind"]
