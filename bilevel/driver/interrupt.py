"""Ctrl-C between chunks instead of inside them."""

import signal
import threading
from types import TracebackType


class Interrupt:
    """While entered, the first Ctrl-C is noted in `pressed`; a second one interrupts at once.

    The compiled loop owns the state while it runs, so an interruption inside a chunk would lose
    it. Outside the main thread, where Python delivers no signals, this does nothing.
    """

    def __enter__(self) -> "Interrupt":
        self.pressed = False
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

    def _note(self, *_) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
