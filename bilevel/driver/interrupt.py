"""Ctrl-C between chunks instead of inside them."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType


class Interrupt:
    """While entered, Ctrl-C is noted in `pressed` and `again`, and a third one ends the process.

    The compiled loop owns the state while it runs, and code that is being compiled or written
    cannot be left halfway, so nothing is raised there. Inside `waiting()` nothing would be lost: a
    second Ctrl-C is raised at once. Outside the main thread, where Python delivers no signals, this
    does nothing.
    """

    def __enter__(self) -> "Interrupt":
        self.pressed = self.again = self._waiting = False
        self._main = threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGINT)
        if self._main:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around code of the user that may block: a loader, a callback."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _note(self, *_) -> None:
        if self.pressed:
            self.again = True
            if self._waiting:
                raise KeyboardInterrupt
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.pressed = True
