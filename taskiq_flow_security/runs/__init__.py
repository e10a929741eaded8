"""What becomes of pipelines: the runs that were started, and the events of their tasks."""
