"""Notices a reward that asks for signals in a thread where Python refuses them, also one that hides the error.

Signal handlers can be set in the main thread alone. Inside ``try: ... except Exception: return 0.0`` the refusal becomes a
reward of 0, so the exception is no evidence: the request itself is.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

_current: ContextVar[SignalProbe | None] = ContextVar("signal_probe", default=None)


class SignalProbe:
    """Around one call: ``asked`` is True once the call wanted a signal handler or an alarm outside of the main thread.

    While any probe is open, four functions of ``signal`` are wrapped. In the main thread, and in threads without a probe,
    the wrapped ones do what they did.

    Example:
        >>> import threading
        >>> def call(probe):
        ...     with probe:
        ...         try:
        ...             signal.signal(signal.SIGALRM, signal.SIG_DFL)
        ...         except ValueError:
        ...             pass
        >>> probe = SignalProbe()
        >>> thread = threading.Thread(target=call, args=[probe])
        >>> thread.start(); thread.join()
        >>> probe.asked
        True
    """

    def __init__(self) -> None:
        self.asked = False
        self._token: Token[SignalProbe | None] | None = None

    def __enter__(self) -> SignalProbe:
        self._token = _current.set(self)
        _wrap(+1)
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._token is not None
        _current.reset(self._token)
        _wrap(-1)


def _noted(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        probe = _current.get()
        if probe is not None and threading.current_thread() is not threading.main_thread():
            probe.asked = True
            # An alarm set here would go off in the main thread, in the middle of training.
            raise ValueError("signal only works in main thread of the main interpreter")
        return function(*args)

    return wrapped


def _wrap(change: int) -> None:
    """One probe more or less; the last one that closes puts the functions back."""
    global _open
    with _lock:
        _open += change
        for module, name, function, noted in _FUNCTIONS:
            setattr(module, name, noted if _open else function)


_lock, _open = threading.Lock(), 0
# What signal.signal calls, so that those have it too who imported it by name.
_INNER = (importlib.import_module("_signal"), "signal")
_FUNCTIONS = [
    (module, name, getattr(module, name), _noted(getattr(module, name)))
    for module, name in (_INNER, (signal, "alarm"), (signal, "setitimer"), (signal, "siginterrupt"))
]
