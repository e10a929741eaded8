"""The newest policy as it is stored, and as this process knows it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from taskiq_flow_security.core.events import Outcome
from taskiq_flow_security.core.reasons import Reason
from taskiq_flow_security.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    PolicyConflictError,
)
from taskiq_flow_security.live_policy.document import PolicyDocument
from taskiq_flow_security.live_policy.signature import PolicySigner
from taskiq_flow_security.live_policy.stores import NOTHING, Found, PolicyStore, mark_of
from taskiq_flow_security.losses import Losses

_logger = logging.getLogger(__name__)

_ATTEMPTS = 10
"""How often a change is tried while others make changes, too."""
_FIRST_PAUSE, _LAST_PAUSE = 0.02, 1.0
"""Seconds between two attempts, at most."""

_LOOKS = 3
"""How often what is found is compared, while others put something else there, before the store is given up."""

_SIGNED_ANEW = 60.0
"""Seconds between two signatures anew: while settings are rolled out, two processes may prefer two keys."""

_NOT_UNDERSTOOD = (Reason.UNKNOWN_KEY, Reason.INVALID_CLAIMS)
"""What may be newer than what this process knows: it has not got the key yet, or not the program."""

Edit = Callable[[PolicyDocument], PolicyDocument]


class Record(Protocol):
    """Records a change before it is made, as allowed; and as denied, where it was not made after all."""

    def __call__(self, old: PolicyDocument, new: PolicyDocument, outcome: Outcome) -> None: ...


class StoredPolicy:
    """Takes over what is newer in the store, and puts back there what is older or nobody's.

    `on_adopted` is called with each document that comes into force. All calls come from one event loop.
    """

    def __init__(
        self,
        store: PolicyStore,
        signer: PolicySigner,
        clock: Callable[[], float],
        on_adopted: Callable[[PolicyDocument], None],
    ) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock
        self._on_adopted = on_adopted
        self._signed: bytes | None = None
        self._mark = NOTHING
        self._signed_anew: float | None = None
        self._looking = asyncio.Lock()
        self._losses = Losses(_logger, "times, something else stood in the place of the policy")
        self.document = PolicyDocument()

    async def look(self) -> None:
        """Bring the store and this process to the same. Raises `BackendUnavailableError` where that is not possible."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        for _ in range(_LOOKS):
            if await self._store.mark() == self._mark or await self._compare(await self._store.read()):
                return await self._sign_anew()
        raise BackendUnavailableError("Something else is put in the place of the policy all the time.")

    async def change(self, edit: Edit, record: Record, version: int | None) -> PolicyDocument:
        """As `LivePolicy.change`."""
        pause = _FIRST_PAUSE
        for _ in range(_ATTEMPTS):
            async with self._looking:
                await self._look()
                old = self.document
                if version is not None and version != old.version:
                    raise PolicyConflictError(old.version)
                new = edit(old).model_copy(update={"version": old.version + 1})
                signed = self._sign(new)
                record(old, new, Outcome.ALLOW)
                if await self._replace(self._mark, signed):
                    self._adopt(new, signed)
                    return new
                record(old, new, Outcome.DENY)
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 (not a secret)
            pause = min(pause * 2, _LAST_PAUSE)
        raise BackendUnavailableError("Others are changing the policy all the time; try again later.")

    def forked(self) -> None:
        """Begin anew in a forked process, where nobody will let go of what another thread has held."""
        self._looking = asyncio.Lock()

    async def _replace(self, mark: bytes, signed: bytes) -> bool:
        """As the store's `replace`, whose answer may get lost, so that it is asked again."""
        try:
            return await self._store.replace(mark, signed)
        except BackendUnavailableError:
            if await self._store.replace(mark, signed):
                return True
        raise BackendUnavailableError("Nobody can tell whether the change was made; look at the policy.")

    def _sign(self, document: PolicyDocument) -> bytes:
        try:
            return self._signer.sign(document, self._clock())
        except AuthenticationError:
            if not (document.revoked.signing_key or document.revoked.reinstated):
                raise
        raise ConfigurationError(
            "revoked: there would be no key left to sign the policy with that was never revoked; add another one to "
            "signing_keys first."
        )

    async def _sign_anew(self) -> None:
        """Sign what is stored with the key that signs now, so that who starts without the old one can read it."""
        now = time.monotonic()
        if self._signed is None or not self._signer.signs_otherwise(self._signed, self.document, self._clock()):
            return
        if self._signed_anew is not None and now - self._signed_anew < _SIGNED_ANEW:
            return
        self._signed_anew = now
        signed = self._sign(self.document)
        if await self._store.replace(self._mark, signed):
            self._adopt(self.document, signed)

    async def _compare(self, found: Found) -> bool:
        """Adopt what was found if it is newer than what is in force, else put that back; whether both are the same."""
        signed = found.signed
        document = None if found.mark == NOTHING else self._read(signed)
        if document is not None and (self._signed is None or document.version > self.document.version):
            self._adopt(document, signed)
            return True
        if document is not None and document.version == self.document.version:
            await self._reconcile(document, signed)
            return True
        if self._signed is None:
            return False  # it has gone since it was looked for
        self._losses.add("the newer one is put back")
        return await self._store.replace(found.mark, self._signed)

    def _read(self, signed: bytes) -> PolicyDocument | None:
        """What was signed; ``None`` if nobody has who may. Raises `BackendUnavailableError` where that is not known."""
        try:
            return self._signer.read(signed, self._clock())
        except AuthenticationError as error:
            self._losses.add(error.reason)
            if self._signed is None or error.reason in _NOT_UNDERSTOOD:
                # A genuine one may have stood there, or be this, and have restricted or revoked something.
                raise BackendUnavailableError(
                    "The policy cannot be believed. If no process puts the right one back, delete it from the "
                    "store, and make the changes that were made to it again."
                ) from None
            return None

    async def _reconcile(self, document: PolicyDocument, signed: bytes) -> None:
        """Meet another document of the version that is in force, as Redis lets two of them be made in a fail-over.

        It may also be one that was signed and lost a race, which somebody has put there: so what is in force here stays
        so, with what either revokes, and who can sign makes that the next version.
        """
        if document == self.document:
            return self._adopt(document, signed)
        self._losses.add("two have the same version, of which one stays in force with what either revokes")
        both = self.document.with_revoked(document.revoked.united(self.document.revoked))
        newer = both.model_copy(update={"version": both.version + 1})
        try:
            signed_newer = self._sign(newer)
        except (AuthenticationError, ConfigurationError):
            pass  # somebody else will
        else:
            if await self._replace(mark_of(signed), signed_newer):
                return self._adopt(newer, signed_newer)
        self._adopt(both, signed)

    def _adopt(self, document: PolicyDocument, signed: bytes) -> None:
        self._on_adopted(document)
        self.document, self._signed, self._mark = document, signed, mark_of(signed)
