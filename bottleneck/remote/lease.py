"""One writer at a time behind a URL: an object that names the writer, which renews it while it is at work.

The object is created only if it is absent, where the store can do that; then it is read back. It stays until
the work is complete: its token tells which staging folder has written last.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from bottleneck.errors import CacheError, Note
from bottleneck.remote.folder import RemoteFolder

SECONDS = 300.0  # a lease that was not renewed for so long is taken over
RENEWED = 60.0  # seconds between two renewals
KINDS = {"host": str, "pid": int, "begun": str, "expires": int | float, "token": str}  # of its fields
SETTLED = 1.0  # seconds until a lease is read back: who takes it at the same moment has written by then


class Lease:
    """The lease `name` in a folder. The clocks of those who write must agree within minutes.

    known : token of the lease that the caller held last.

    Attributes
    ----------
    token : `known` if the lease is still there, since nobody else has written then; otherwise a new one
    notes : a note where an expired lease was taken over

    Raises CacheError, which names the other writer, if its lease has not expired.
    """

    def __init__(self, folder: RemoteFolder, name: str, known: str) -> None:
        self._folder, self._name = folder, name
        self.notes: list[Note] = []
        self._lost: CacheError | None = None
        there = self._read()
        is_own = there is not None and there["token"] == known
        self.token = known if is_own else secrets.token_hex(16)
        if there is not None and not is_own:
            if there["expires"] > time.time():
                raise self._held(there)
            if there["expires"]:  # 0: it was given back
                text = f"The lease of {_named(there)} on {self._url} has expired and was taken over."
                self.notes.append(Note("lease-taken-over", text, details={"host": there["host"]}))
        self._begun = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(FileExistsError):  # another writer, or an answer to us was lost: reading it tells
            self._write(create=there is None)
        try:
            if not is_own or there is None or there["expires"] < time.time():  # others may take it, too
                time.sleep(SETTLED)
            self._require_own()
        except KeyboardInterrupt:
            with suppress(CacheError):
                self._require_own()
                self._write(expires=0.0)
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="cache-lease", daemon=True)
        self._thread.start()

    @property
    def _url(self) -> str:
        return str(self._folder.url / self._name)

    def require(self) -> None:
        """Raise CacheError if another writer has taken the lease, or it could not be renewed in time."""
        if self._lost is None and time.time() > self._expires:  # the machine was asleep, or stood still
            self._require_own()
        if self._lost is not None:
            raise self._lost

    def end(self, complete: bool) -> None:
        """Stop renewing it, and delete it, or mark it as given back. Raises CacheError if the store fails."""
        self._ended.set()
        self._thread.join()
        with suppress(CacheError):
            self.require()
        if self._lost is not None:
            return
        if complete:
            self._folder.delete(self._name)
        else:
            self._write(expires=0.0)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            try:
                self._require_own()
                self._write()
            except CacheError as error:
                if self._lost is not None or time.time() > self._expires:
                    self._lost = self._lost or error
                    return

    def _require_own(self) -> None:
        there = self._read()
        if there is None or there["token"] != self.token:
            self._lost = self._held(there)
            raise self._lost

    def _write(self, create: bool = False, expires: float | None = None) -> None:
        expires = time.time() + SECONDS if expires is None else expires
        lease = {"host": socket.gethostname(), "pid": os.getpid(), "begun": self._begun, "expires": expires}
        data = json.dumps({**lease, "token": self.token}).encode()
        self._folder.write(self._name, data, create)
        self._expires = expires

    def _read(self) -> dict[str, Any] | None:
        data = self._folder.read(self._name)
        if data is None:
            return None
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            lease = json.loads(data)
            if all(isinstance(lease[name], kind) for name, kind in KINDS.items()):
                return dict(lease)
        raise CacheError(f"{self._url} is no lease of a writer.", "Delete it if nothing writes the cache.")

    def _held(self, other: dict[str, Any] | None) -> CacheError:
        if other is None:
            return CacheError(
                f"The lease {self._url} is gone: another writer may be at work.",
                "Run the same command again.",
            )
        until = datetime.fromtimestamp(min(max(other["expires"], 0), 4e9), UTC).strftime("%H:%M:%S UTC")
        return CacheError(
            f"Another writer, {_named(other)}, holds the lease {self._url} until {until}.",
            "Wait until it has finished, or stop it. If it was killed, run this command again after that, or "
            "delete the lease.",
        )


def _named(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host'][:80]!r} since {lease['begun'][:40]}"
