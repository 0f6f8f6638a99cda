"""Transfers host batches to the device on a thread, ahead of the step that needs them."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax

_END = object()
_POLL_SECONDS = 0.1


class prefetch_to_device(Iterator[Any]):
    """Iterator of `put_fn(batch)`, at most two finished transfers ahead.

    The next batch is on the device when a step ends. The thread waits for the transfer, so
    the caller waits only when the data path is too slow.

    Args:
        batches: host batches; closed with this iterator when it has `close`.
        put_fn: starts the transfer of one batch and returns device arrays.

    Raises (from `next`): whatever `batches` or `put_fn` raised, in its place in the order.
    """

    def __init__(self, batches: Iterator[Any], put_fn: Callable[[Any], Any]):
        # One in the queue, one in the hands of the thread.
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=_transfer,
            args=(batches, put_fn, self._queue, self._closed),
            name="transfer-to-device",
            daemon=True,
        )
        # Also at interpreter exit: a daemon thread that is still inside the runtime then
        # can crash it.
        self._finalizer = weakref.finalize(
            self, _stop, batches, self._queue, self._closed, self._thread
        )
        self._thread.start()

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._queue.get()
        if item is _END:
            self.close()
            if error is not None:
                raise error
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop the thread and the batches behind it; harmless when repeated."""
        self._finalizer()

    def __enter__(self) -> "prefetch_to_device":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _transfer(batches, put_fn, ready: queue.Queue, closed: threading.Event) -> None:
    last = (_END, None)
    try:
        for batch in batches:
            if not _put(ready, closed, (jax.block_until_ready(put_fn(batch)), None)):
                return
    except BaseException as error:  # noqa: BLE001 - raised again by `next`
        last = (_END, error)
    _put(ready, closed, last)


def _put(ready: queue.Queue, closed: threading.Event, item) -> bool:
    while not closed.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def _stop(batches, ready: queue.Queue, closed: threading.Event, thread: threading.Thread) -> None:
    closed.set()
    if thread is not threading.current_thread():
        thread.join(timeout=60)
    while not ready.empty():
        ready.get_nowait()
    close = getattr(batches, "close", None)
    if close is not None:
        close()
