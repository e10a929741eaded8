"""What one process remembers of messages."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security.replay import MemoryReplays, Progress
from taskiq_flow_security.tokens.message_signature import MessageSignature

START = 1_800_000_000
MARGIN = 20


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        return self.now


Step = tuple[str, int, str, "Progress | None", int]
"""A message, when it expires, its key, how it is noted if it is, and how many seconds pass before."""


def message(jti: str, seconds: int = 3600, kid: str = "k") -> MessageSignature:
    """The signature of a message that expires so many seconds after the start."""
    return MessageSignature(kid, jti, START, START + seconds)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 5000),
            st.sampled_from("kl"),
            st.sampled_from([None, *Progress]),
            st.integers(0, 400),
        )
    )
)
def test_what_has_not_expired_is_known_and_nothing_else(
    steps: list[Step],
) -> None:
    clock = Clock()
    replays = MemoryReplays(clock, MARGIN)
    noted: dict[MessageSignature, Progress] = {}
    for jti, seconds, kid, progress, later in steps:
        clock.now += later
        signature = message(jti, seconds, kid)
        if progress is not None and signature.expires_at + MARGIN > clock.now:  # no other is received
            replays.note(signature, progress)
            noted[signature] = progress
        for known, how_far in noted.items():
            if known.expires_at + MARGIN > clock.now:
                assert replays.find(known) is how_far
    minutes = {(known.jti, known.kid, known.expires_at // 60) for known in noted}
    for jti, kid, minute in product("abcd", "klm", range(START // 60, START // 60 + 90)):
        if (jti, kid, minute) not in minutes:
            assert replays.find(MessageSignature(kid, jti, START, minute * 60)) is None


def test_a_message_that_has_expired_is_forgotten_when_others_come() -> None:
    clock = Clock()
    replays = MemoryReplays(clock, MARGIN)
    for number in range(1000):
        replays.note(message(f"{number}", seconds=60 + number % 60), Progress.COMPLETED)
    clock.now += 1000
    replays.note(message("late"), Progress.COMPLETED)
    assert replays.remembered == 1


def test_copies_are_remembered_once() -> None:
    replays = MemoryReplays(Clock(), MARGIN)
    for _ in range(10_000):
        replays.note(message("copied"), Progress.COMPLETED)
    assert replays.remembered == 1


def test_a_message_is_remembered_until_it_has_expired_for_the_margin() -> None:
    clock = Clock()
    replays = MemoryReplays(clock, MARGIN)
    replays.note(message("first", seconds=119), Progress.COMPLETED)  # the last one of its span
    clock.now += 119 + MARGIN - 1
    replays.note(message("second", seconds=600), Progress.COMPLETED)
    assert replays.find(message("first", seconds=119)) is Progress.COMPLETED


@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 200), st.integers(60, 600)), max_size=400))
def test_no_more_are_ever_remembered_than_it_was_told(at_most: int, noted: list[tuple[int, int]]) -> None:
    replays = MemoryReplays(Clock(), MARGIN, at_most=at_most)
    for jti, seconds in noted:
        replays.note(message(f"{jti}", seconds), Progress.COMPLETED)
        assert replays.find(message(f"{jti}", seconds)) is Progress.COMPLETED
        assert replays.remembered == sum(map(len, replays._spans.values())) <= at_most


def test_those_are_forgotten_first_that_expire_soonest() -> None:
    replays = MemoryReplays(Clock(), MARGIN, at_most=1000)
    replays.note(message("short", seconds=60), Progress.COMPLETED)
    for number in range(20_000):
        replays.note(message(f"{number}", seconds=3600 + number // 10), Progress.COMPLETED)
    assert replays.find(message("19999", seconds=3600 + 1999)) is Progress.COMPLETED
    assert replays.find(message("19100", seconds=3600 + 1910)) is Progress.COMPLETED
    assert replays.find(message("short", seconds=60)) is None
    assert replays.find(message("0")) is None
