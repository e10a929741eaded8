"""A run that was given up says why, wherever its result is read."""

from __future__ import annotations

import pickle

import pytest
from taskiq import TaskiqResult
from taskiq.serializers import JSONSerializer

from taskiq_flow_security.pipelines import AbandonedRunError

ABANDONED = AbandonedRunError("no_result", "There was no result.")


def through_json(error: AbandonedRunError) -> object:
    result = TaskiqResult[object](is_err=True, return_value=None, execution_time=0, error=error)
    stored = JSONSerializer().dumpb(result.model_dump(mode="json"))
    return TaskiqResult[object].model_validate(JSONSerializer().loadb(stored)).error


@pytest.mark.parametrize(
    "read", [pickle.loads(pickle.dumps(ABANDONED)), through_json(ABANDONED)], ids=["pickle", "json"]
)
def test_why_a_run_was_given_up_survives_result_backends(read: object) -> None:
    assert isinstance(read, AbandonedRunError)
    assert (read.reason, str(read)) == ("no_result", "There was no result.")
