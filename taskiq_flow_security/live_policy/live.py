"""Keeps this process at the newest policy that there is."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future

from taskiq_flow_security.config import TaskiqFlowConfig
from taskiq_flow_security.errors import BackendUnavailableError
from taskiq_flow_security.live_policy.document import PolicyDocument
from taskiq_flow_security.live_policy.in_force import InForce
from taskiq_flow_security.live_policy.signature import PolicySigner
from taskiq_flow_security.live_policy.stored import Edit, Record, StoredPolicy
from taskiq_flow_security.live_policy.stores import PolicyStore
from taskiq_flow_security.stores import background
from taskiq_flow_security.tokens.keyring import Keyring

_logger = logging.getLogger(__name__)

INTERVAL = 0.3
"""Seconds between two looks at the store."""


class LivePolicy:
    """The policy that is in force in this process.

    Where others share the store, it is looked at all the time, in the background. A process that cannot read it keeps
    to what it knows for `max_age` seconds, and is `stale` then. Whoever can write to the store cannot change a policy,
    which is signed; nor bring an old one back, or remove it, while any process knows a newer one and puts that back.
    """

    def __init__(
        self, config: TaskiqFlowConfig, keyring: Keyring, store: PolicyStore, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._keyring = keyring
        signer = PolicySigner(keyring, config.principal_audience, config.clock_leeway, config.principal_ttl)
        self._stored = StoredPolicy(store, signer, clock, self._adopt)
        self._max_age = config.policy_max_age
        self._confirmed = 0.0
        """When the store was last found to hold what is in force, by `time.monotonic`."""
        self._starting = threading.Lock()
        self._first_look: Future[None] | None = None
        """Done when the store has been looked at for the first time, in this process."""
        self.in_force = InForce.of(config, self._stored.document)
        self.stale = store.shared
        """Whether nothing can be decided now: the newest policy is not known, or not known any more."""
        if store.shared:
            _shared.add(self)

    @property
    def document(self) -> PolicyDocument:
        """What was changed at run time, as far as this process knows."""
        return self._stored.document

    async def catch_up(self) -> None:
        """Begin to follow the store, if that has not begun, and wait until it has been looked at once.

        For whoever finds the policy `stale` in an event loop, which `caught_up` would block.
        """
        if self.stale:
            await asyncio.shield(asyncio.wrap_future(self._begin()))

    def caught_up(self) -> bool:
        """Whether there is something in force to decide by. Blocks while the store is looked at for the first time."""
        if self.stale:
            self._begin().result()
        return not self.stale

    def _begin(self) -> Future[None]:
        with self._starting:
            if self._first_look is None:
                first_look = self._first_look = Future()
                me = weakref.ref(self)
                background.call_soon(lambda: _keep(asyncio.ensure_future(_follow(me, first_look))))
            return self._first_look

    async def change(self, edit: Edit, record: Record, version: int | None = None) -> PolicyDocument:
        """Make the next version out of the newest one, in force here at once, and for all that is stored elsewhere.

        It is recorded before it is made, so that nothing is ever in force that nobody has recorded, whenever this
        process ends, an answer is lost, or whoever has asked for it no longer waits; a change that is recorded and
        then not made, because somebody else was faster, is recorded as that.

        Raises `PolicyConflictError` if the newest one is not `version`, where that is given; `BackendUnavailableError`
        if the store is away; `AuthenticationError` where this process has no key to issue with; and what `edit` raises.
        """
        return await background.run_through(self._stored.change(edit, record, version))

    async def _look(self) -> None:
        """See to it that this is the newest policy. Raises `BackendUnavailableError` where nobody can tell."""
        await self._stored.look()
        self._confirmed = time.monotonic()
        if self.stale:
            self.stale = False
            _logger.info("The policy is up to date, at version %d.", self.document.version)

    def _adopt(self, document: PolicyDocument) -> None:
        self._keyring.revoke(document.revoked.signing_key)
        self.in_force = InForce.of(self._config, document)

    def _missed(self, error: Exception) -> None:
        """Note that the store could not be looked at."""
        if self._first_look is not None and not self._first_look.done():
            _logger.warning("The policy cannot be read; until it can, everything is denied.")
        elif not self.stale and time.monotonic() - self._confirmed > self._max_age:
            _logger.error("The policy could not be read for %g seconds; everything is denied.", self._max_age)
            self.stale = True
        if not isinstance(error, BackendUnavailableError):
            _logger.error("The policy cannot be read because of an unexpected error.", exc_info=error)


async def _follow(me: weakref.ref[LivePolicy], first_look: Future[None]) -> None:
    """Look at the store again and again, for as long as anybody decides by what is found there."""
    while (live := me()) is not None:
        try:
            await live._look()
        except Exception as error:  # noqa: BLE001 (whatever it is, it must not end this)
            live._missed(error)
        del live
        if not first_look.done():
            first_look.set_result(None)
        await asyncio.sleep(INTERVAL)


_tasks: set[asyncio.Future[None]] = set()


def _keep(task: asyncio.Future[None]) -> None:
    """Hold a task that nobody waits for; an event loop alone does not."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


_shared: weakref.WeakSet[LivePolicy] = weakref.WeakSet()


def _forked() -> None:
    """In a forked process nobody looks at the store yet."""
    for live in _shared:
        live._starting = threading.Lock()  # another thread may have held it
        live._stored.forked()
        live._first_look = None
        live.stale = True


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_forked)
