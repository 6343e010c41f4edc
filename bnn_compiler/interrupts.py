"""Ctrl-C that arrives inside native code.

Python's handler raises ``KeyboardInterrupt`` in whatever runs on the main thread. Where that is a function that TVM
called, the exception passes through C++, and comes out as another one without a message, or not at all.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` at the end of the block where SIGINT came in it and its exception was lost.

    Does nothing outside the main thread, where no signal arrives, and where the caller ignores SIGINT.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        handler(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is remember:
            signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt
