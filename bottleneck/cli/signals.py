"""Signals end a run once: contexts close and committed work is saved, whatever signals follow."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AT_ONCE, SECONDS = 3, 1.0  # so many signals within this time leave without waiting for the commit


class Interruption:
    """The first signal raises KeyboardInterrupt in the main thread; later ones are counted.

    number : the first signal, None before it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._times: list[float] = []
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, a job in the background
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self._times = [*self._times, time.monotonic()][-AT_ONCE:]
        if len(self._times) == AT_ONCE and self._times[-1] - self._times[0] <= SECONDS:
            with suppress(OSError):
                os.write(2, b"Stopped at once. What was committed is saved.\n")
            os._exit(128 + (self.number or number))  # HDF5 may be at work in another thread
        if self.number is None:
            self.number = number
            raise KeyboardInterrupt(number)
