"""Messages and bytes between processes: what `line.py` sends over its connections."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(near: Stream, far: Stream, *, linger_seconds: float = 0.0) -> None:
    """Passes bytes on in both directions until either side ends.

    Args:
      near: the connection of this process's own jax.
      far: the other.
      linger_seconds: how long `near` stays open after `far` has ended.
    """
    out = asyncio.create_task(_pump(near[0], far[1]))
    back = asyncio.create_task(_pump(far[0], near[1]))
    try:
        await asyncio.wait((out, back), return_when=asyncio.FIRST_COMPLETED)
        near_ended = out.done() and out.result()
        out.cancel()
        await asyncio.gather(out, return_exceptions=True)
        if not near_ended:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(linger_seconds):
                    while await near[0].read(2**16):
                        pass
    finally:
        for task in (out, back):
            task.cancel()
        for _, writer in (near, far):
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Until the reader ends (True) or the writer fails (False)."""
    while True:
        try:
            data = await reader.read(2**16)
        except OSError:
            return True
        if not data:
            return True
        try:
            writer.write(data)
            await writer.drain()
        except OSError:
            return False


async def read(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end of the connection, or for what is not a message."""
    try:
        line = await reader.readline()
        message = json.loads(line) if line else None
    except (OSError, ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def write(writer: asyncio.StreamWriter, message: Message) -> None:
    """Sends a message; one to a process that is gone is lost."""
    with contextlib.suppress(OSError, RuntimeError):
        writer.write(json.dumps(message).encode() + b"\n")


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def reason(error: BaseException) -> str:
    """Why a connection failed, in the system's words."""
    if isinstance(error, socket.gaierror):
        return "its name is unknown"
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else "no answer"


def listed(names: Sequence[str], limit: int = 8) -> str:
    """The names, separated by commas; the number of those beyond `limit`."""
    shown = names if len(names) <= limit else [*names[:limit], f"{len(names) - limit} more"]
    return ", ".join(shown)


async def end_all(*open_ends: asyncio.Server | asyncio.StreamWriter) -> None:
    """Closes all of them and ends every other task of this loop."""
    for end in open_ends:
        end.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # What was closed is gone in the next rounds.
    await asyncio.sleep(0.02)
