"""Messages of all kinds, to try out what must hold for any."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from taskiq.message import TaskiqMessage

quick = settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))

names = st.text(max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | names
    | st.sampled_from([b"bytes", Decimal("1.50"), UUID(int=7), datetime(2026, 1, 2, tzinfo=timezone.utc)])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(names | st.integers(0, 9), inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=6,
)
label_names = names.filter(lambda name: not name.startswith("taskiq_flow") and name != "delay")  # which is a number
labels = st.dictionaries(label_names, names, max_size=3)


@st.composite
def messages(draw: st.DrawFn) -> TaskiqMessage:
    given_labels = draw(labels)
    return TaskiqMessage(
        task_id=draw(st.text("abcdef0123456789", min_size=1, max_size=8)),
        task_name=draw(names),
        labels=given_labels,
        labels_types=draw(st.none() | st.just(dict.fromkeys(given_labels, 3))),
        args=draw(st.lists(values, max_size=3)),
        kwargs=draw(st.dictionaries(names, values, max_size=3)),
    )


class Aliased(BaseModel):
    """A model that is named otherwise in JSON than in Python, if its user says so."""

    user_id: int = Field(serialization_alias="userId")


class AlwaysAliased(Aliased):
    """One whose user has said so."""

    model_config = ConfigDict(serialize_by_alias=True)
