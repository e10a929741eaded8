"""The API over the pipelines of a broker."""

from taskiq_flow_security.http.api.app import VisualizationAPI, create_visualization_api

__all__ = ["VisualizationAPI", "create_visualization_api"]
