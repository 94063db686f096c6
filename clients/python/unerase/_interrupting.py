"""Calls that Ctrl-C can interrupt anywhere.

Python raises KeyboardInterrupt in the main thread, wherever that is. Inside gRPC it leaves a call half started:
closing the channel then waits for ever, or gRPC's own thread fails with a traceback (grpc/grpc#19973 is one such case).
So the main thread stays out of gRPC and waits for another thread, which makes the call.
"""

import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NoReturn, TypeVar

Answer = TypeVar("Answer")


def interruptible(call: Callable[[], Answer]) -> Answer:
    """Return what a call returns, or raise what it raises; in the main thread, another thread makes the call."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    context = contextvars.copy_context()
    ended = SimpleQueue[Callable[[], Answer]]()

    def make() -> None:
        try:
            answer = context.run(call)
        except BaseException as error:
            ended.put(_raising(error))
        else:
            ended.put(lambda: answer)

    threading.Thread(target=make, name="unerase-call", daemon=True).start()
    return ended.get()()


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail
