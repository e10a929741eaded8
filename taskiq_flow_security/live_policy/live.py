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
from taskiq_flow_security.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    PolicyConflictError,
)
from taskiq_flow_security.live_policy.document import PolicyDocument
from taskiq_flow_security.live_policy.in_force import InForce
from taskiq_flow_security.live_policy.signature import PolicySigner
from taskiq_flow_security.live_policy.stores import PolicyStore
from taskiq_flow_security.stores import background
from taskiq_flow_security.stores.losses import Losses
from taskiq_flow_security.tokens.keyring import Keyring

_logger = logging.getLogger(__name__)

INTERVAL = 0.3
"""Seconds between two looks at the store."""

_ATTEMPTS = 10
"""How often a change is tried while others make changes, too."""

Edit = Callable[[PolicyDocument], PolicyDocument]


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
        self._store = store
        self._clock = clock
        self._signer = PolicySigner(keyring, config.principal_audience, config.clock_leeway)
        self._max_age = config.policy_max_age
        self._signed: bytes | None = None
        self._document = PolicyDocument()
        self._losses = Losses(_logger, "times, something else stood in the place of the policy")
        self._confirmed = 0.0
        """When the store was last found to hold what is in force, by `time.monotonic`."""
        self._starting = threading.Lock()
        self._looking = asyncio.Lock()
        self._first_look: Future[None] | None = None
        """Done when the store has been looked at for the first time, in this process."""
        self.in_force = InForce.of(config, self._document)
        self.stale = store.shared
        """Whether nothing can be decided now: the newest policy is not known, or not known any more."""
        if store.shared:
            _shared.add(self)

    @property
    def document(self) -> PolicyDocument:
        """What was changed at run time, as far as this process knows."""
        return self._document

    async def catch_up(self) -> None:
        """Begin to follow the store, if that has not begun, and wait until it has been looked at once.

        For whoever finds the policy `stale` in an event loop, which `caught_up` would block.
        """
        if self.stale:
            await asyncio.shield(asyncio.wrap_future(self._follow()))

    def caught_up(self) -> bool:
        """Whether there is something in force to decide by. Blocks while the store is looked at for the first time."""
        if self.stale:
            self._follow().result()
        return not self.stale

    def _follow(self) -> Future[None]:
        with self._starting:
            if self._first_look is None:
                first_look = self._first_look = Future()
                me = weakref.ref(self)
                background.call_soon(lambda: _keep(asyncio.ensure_future(_follow(me, first_look))))
            return self._first_look

    async def change(self, edit: Edit, version: int | None = None) -> tuple[PolicyDocument, PolicyDocument]:
        """Make the next version out of the newest one, in force here at once. The version before, and the new one.

        Raises `PolicyConflictError` if the newest one is not `version`, where that is given; `BackendUnavailableError`
        if the store is away; `AuthenticationError` where this process has no key to issue with; and what `edit` raises.
        """
        return await background.run(self._change(edit, version))

    async def _change(self, edit: Edit, version: int | None) -> tuple[PolicyDocument, PolicyDocument]:
        for _ in range(_ATTEMPTS):
            async with self._looking:
                await self._look()
                old, signed = self._document, self._signed
                if version is not None and version != old.version:
                    raise PolicyConflictError(old.version)
                new = edit(old).model_copy(update={"version": old.version + 1})
                data = self._sign(new)
                if await self._store.replace(signed, data):
                    self._adopt(new, data)
                    return old, new
        raise BackendUnavailableError("Others are changing the policy all the time; try again later.")

    def _sign(self, document: PolicyDocument) -> bytes:
        try:
            return self._signer.sign(document, self._clock())
        except AuthenticationError:
            if not document.revoked.signing_key:
                raise
        raise ConfigurationError(
            "revoked: there would be no key left to issue with; add another one to signing_keys first."
        )

    async def _look(self) -> None:
        """Take over what the store holds, or put back what it should. Raises `BackendUnavailableError`."""
        head = await self._store.head()
        if head is None or self._signed is None or head != self._signed.partition(b"\n")[0]:
            await self._compare(await self._store.read())
        self._confirmed = time.monotonic()
        if self.stale:
            self.stale = False
            _logger.info("The policy is up to date, at version %d.", self._document.version)

    async def _compare(self, found: bytes | None) -> None:
        """See whether what was found is newer than what is in force."""
        document = None
        if found is not None:
            try:
                document = self._signer.read(found, self._clock())
            except AuthenticationError as error:
                self._losses.add(error.reason)
                if self._signed is None:
                    # A genuine one may have stood there, and restricted or revoked something.
                    raise BackendUnavailableError(
                        "The policy cannot be believed. If no process puts the right one back, delete it from the "
                        "store, and make the changes that were made to it again."
                    ) from None
        if document is not None and found is not None and document.version >= self._document.version:
            self._adopt(document, found)
        elif self._signed is not None:
            self._losses.add("the newer one is put back")
            await self._store.replace(found, self._signed)

    def _adopt(self, document: PolicyDocument, signed: bytes) -> None:
        self._keyring.revoke(document.revoked.signing_key)
        self.in_force = InForce.of(self._config, document)
        self._document, self._signed = document, signed

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
            async with live._looking:
                await live._look()
        except Exception as error:  # noqa: BLE001 (whatever it is, it must not end this)
            live._missed(error)
        if not first_look.done():
            first_look.set_result(None)
        del live
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
        live._starting, live._looking = threading.Lock(), asyncio.Lock()  # another thread may have held them
        live._first_look = None
        live.stale = True


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_forked)
