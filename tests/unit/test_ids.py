"""Identifiers: nobody gets the same one twice."""

from __future__ import annotations

import multiprocessing
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest

from taskiq_flow_security.ids import new_id


def test_an_id_is_96_bits_in_hexadecimal() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{24}", new_id()) for _ in range(1000))


def test_no_two_threads_get_the_same() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: new_id(), range(20_000)))
    assert len(set(ids)) == len(ids)


def _send_ids(connection: Connection) -> None:
    connection.send([new_id() for _ in range(600)])


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
def test_a_forked_child_does_not_get_its_parents() -> None:
    new_id()  # so that some are drawn before the fork
    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_send_ids, args=(sending,))
    child.start()
    theirs = receiving.recv()
    child.join(30)
    ours = [new_id() for _ in range(600)]
    assert len({*ours, *theirs}) == 1200
