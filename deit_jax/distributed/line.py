"""The line between the processes of a run: who is there, what they agree on, why they end.

Every process has one connection to process 0, from before jax is connected until after it is
parted. The end of a process closes its connection, so that the others know at once, and who it
was. jax's own connections to its coordination service go through the same port and through this
process, for jax ends a process that loses that service by `abort` and a stack of C++ functions,
before anybody could say why.

The line belongs to a thread of its own. A message is a JSON object in one line.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from deit_jax.distributed import wire
from deit_jax.distributed.environments import Place
from deit_jax.distributed.wire import Message
from deit_jax.errors import RunStopped, printable

# A lost process is a machine's fault: the same command may be run again (EX_TEMPFAIL).
EXIT_LOST = 75
# For a message to arrive.
_DELIVERY_SECONDS = 2.0
# For this process to end by itself, because all end for one reason; half of it where one is lost.
_GRACE_SECONDS = 4.0
_LIMIT = 2**24


class JoinError(RunStopped):
    """The processes of a run did not find each other; the message names who is missing."""

    exit_code = 2


class Line:
    """This process's connection with the others; process 0 has one with each of them.

    Args:
      place: of this process.
      silence_seconds: after this long without a sign of life a process counts as lost.
      say: prints a line for the user.

    Attributes:
      address: `host:port` at which jax finds its coordination service.
    """

    def __init__(self, place: Place, *, silence_seconds: float, say: Callable[[str], None]):
        self.place = place
        self._silence, self._say = silence_seconds, say
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._hosts = dict(enumerate(place.hosts)) | {place.process: socket.gethostname()}
        self._heard: dict[int, float] = {}
        self._gathering: dict[str, dict[int, Any]] = {}
        self._results: dict[str, concurrent.futures.Future] = {}
        self._combine: dict[str, Callable[[list], Any]] = {}
        self._trouble = "no answer"
        self._ending = False
        self._verdict: Message = {}
        self._decided = threading.Event()
        self._gone: set[int] = set()
        # Free now and jax's in a moment.
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def meet(self, *, timeout_seconds: float) -> None:
        """Waits until all processes are there, and says for whom.

        Raises:
          JoinError: somebody is missing after `timeout_seconds`, or is not of this run.
        """
        start, next_note, within = time.monotonic(), 3.0, f"{timeout_seconds:g} s"
        met = self._start_gather("meet", self._hosts[self.place.process], lambda hosts: hosts)
        opened = self._listen() if self.place.process == 0 else self._call()
        task = asyncio.run_coroutine_threadsafe(opened, self._loop)
        try:
            while True:
                with contextlib.suppress(concurrent.futures.TimeoutError):
                    self._hosts = dict(enumerate(met.result(timeout=0.05)))
                    break
                if task.done() and task.exception():
                    raise JoinError(f"process {self.place.process}: {task.exception()}")
                waited = time.monotonic() - start
                # Process 0 knows best who is missing.
                if waited > timeout_seconds + 2 * (0 in self._writers):
                    sentence = f"{self._missing()} did not join within {within}"
                    self.fail(JoinError.exit_code, f"has waited in vain: {sentence}")
                    raise JoinError(f"{sentence} (--join_timeout_seconds)")
                if waited > next_note:
                    self._say(f"waiting for {self._missing()}: {waited:.0f} of {within}")
                    next_note += min(next_note, 30)
        except JoinError:
            self.close()
            raise
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def gather(self, topic: str, value: Any, combine: Callable[[list], Any]) -> Any:
        """`combine([value of process 0, of 1, ...])`, the same on all; waits for all of them.

        Values and result are JSON. A topic is used once. `combine` runs on process 0.
        """
        future = self._start_gather(topic, value, combine)
        while True:
            # Not one long wait: a signal must be answered meanwhile.
            with contextlib.suppress(concurrent.futures.TimeoutError):
                return future.result(timeout=0.2)

    def fail(self, status: int, sentence: str) -> None:
        """Tells the others why this process ends, and that they end with `status` too."""
        self._ending = True
        me = self.place.process
        message = {"end": status, "why": self._named(me) + f" {sentence}", "from": me}
        with contextlib.suppress(concurrent.futures.TimeoutError):
            delivered = asyncio.run_coroutine_threadsafe(self._tell_all(message), self._loop)
            delivered.result(timeout=2 * _DELIVERY_SECONDS)

    def follow(self) -> None:
        """Ends this process if another has ended or will be noticed to have within a moment."""
        if self._decided.wait(timeout=_DELIVERY_SECONDS):
            self._stop()

    def leave(self) -> None:
        """Ends the line after all processes have come to their end."""
        self.gather("leave", None, lambda values: None)
        self._ending = True
        if self.place.process == 0:
            parted = self._all_gone(_DELIVERY_SECONDS)
            asyncio.run_coroutine_threadsafe(parted, self._loop).result()
        self.close()

    def close(self) -> None:
        """Ends the line without a word."""
        self._ending = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    # What follows runs in the line's thread.

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(wire.end_all(*self._servers, *self._writers.values()))
        self._loop.close()

    async def _listen(self) -> None:
        port = int(self.place.coordinator.rpartition(":")[2])
        dual = socket.has_dualstack_ipv6()
        where = {"family": socket.AF_INET6, "dualstack_ipv6": True} if dual else {}
        try:
            listener = socket.create_server(("", port), backlog=1024, **where)
        except OSError as error:
            raise OSError(f"port {port} cannot be opened ({error.strerror})") from None
        self._servers.append(await asyncio.start_server(self._answer, sock=listener, limit=_LIMIT))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Process 0: a new connection, of a process or of its jax."""
        try:
            hello = await wire.read(reader) or {}
            if hello.get("role") == "jax":
                with contextlib.suppress(OSError):
                    service = await asyncio.open_connection(*wire.split(self.address))
                    await wire.relay((reader, writer), service)
            elif isinstance(hello.get("process"), int):
                await self._welcome(hello, reader, writer)
        except asyncio.CancelledError:
            pass  # the line ends; asyncio would report it
        finally:
            writer.close()

    async def _welcome(
        self, hello: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        number, of = hello["process"], hello.get("processes")
        host, refusal = printable(str(hello.get("host")), limit=100), ""
        if of != self.place.processes or not 0 < number < self.place.processes:
            refusal = (
                f"it is number {number} of {of}, and process 0 is one of {self.place.processes}"
            )
        elif number in self._writers:
            refusal = f"there is another process {number}, on {self._hosts[number]}"
        if refusal:
            sentence = f"process {number} on {host} is refused by process 0: {refusal}"
            self._say(sentence)
            wire.write(writer, {"end": JoinError.exit_code, "why": sentence, "from": number})
            number = -1
        else:
            self._writers[number], self._hosts[number] = writer, host
        await self._read_all(number, reader)

    async def _call(self) -> None:
        """The others: connects to process 0, again and again until all are there."""
        self._servers.append(await asyncio.start_server(self._relay_jax, *wire.split(self.address)))
        me, met = self.place.process, self._results["meet"]
        hello = {"process": me, "processes": self.place.processes, "host": self._hosts[me]}
        while not met.done():
            try:
                async with asyncio.timeout(5):
                    reader, writer = await asyncio.open_connection(
                        *wire.split(self.place.coordinator), limit=_LIMIT
                    )
            except (OSError, TimeoutError) as error:
                self._trouble = wire.reason(error)
                await asyncio.sleep(0.2)
                continue
            self._trouble = ""
            wire.write(writer, hello)
            wire.write(writer, {"gather": "meet", "value": self._hosts[me]})
            self._writers[0] = writer
            await self._read_all(0, reader)
            writer.close()

    async def _relay_jax(self, *near: Any) -> None:
        """Others than process 0: a connection of this process's jax, passed on to process 0."""
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far = await asyncio.open_connection(*wire.split(self.place.coordinator))
            wire.write(far[1], {"role": "jax"})
            await wire.relay(near, far, linger_seconds=self._silence)
        near[1].close()

    async def _read_all(self, number: int, reader: asyncio.StreamReader) -> None:
        """All messages of process `number`, until its connection ends."""
        while (message := await wire.read(reader)) is not None:
            self._heard[number] = time.monotonic()
            await self._take(number, message)
        if number < 0:
            return
        if not self._results["meet"].done():
            # It may be started again.
            self._writers.pop(number, None)
            self._gathering["meet"].pop(number, None)
            return
        self._gone.add(number)
        left = number in self._gathering.get("leave", {})
        if number == 0:
            left = (leaving := self._results.get("leave")) and leaving.done()
        if not self._ending and not left:
            await self._lost(number, "ended without a word")

    async def _take(self, number: int, message: Message) -> None:
        if "gather" in message:
            self._gathering.setdefault(message["gather"], {})[number] = message["value"]
            self._finish(message["gather"])
        elif "gathered" in message:
            future = self._results.get(message["gathered"])
            if future and not future.done():
                future.set_result(message["value"])
        elif "missing" in message:
            self._trouble = message["missing"]
        elif "end" in message:
            await self._end(message)

    def _start_gather(self, topic: str, value: Any, combine: Callable) -> Any:
        future = self._results.setdefault(topic, concurrent.futures.Future())

        def start() -> None:
            self._combine[topic] = combine
            self._gathering.setdefault(topic, {})[self.place.process] = value
            if self.place.process == 0:
                self._finish(topic)
            elif topic != "meet":
                wire.write(self._writers[0], {"gather": topic, "value": value})

        self._loop.call_soon_threadsafe(start)
        return future

    def _finish(self, topic: str) -> None:
        """Process 0: combines and tells the result once it has all values."""
        values = self._gathering[topic]
        if topic == "meet" and len(values) < self.place.processes:
            for writer in self._writers.values():
                wire.write(writer, {"missing": self._missing()})
        if len(values) < self.place.processes or topic not in self._combine:
            return
        result = self._combine[topic]([values[i] for i in range(self.place.processes)])
        for writer in self._writers.values():
            wire.write(writer, {"gathered": topic, "value": result})
        self._results[topic].set_result(result)

    async def _watch(self) -> None:
        """Gives signs of life, and misses those of the others."""
        start = time.monotonic()
        while not self._ending:
            for number, writer in list(self._writers.items()):
                wire.write(writer, {})
                silent = time.monotonic() - max(self._heard.get(number, 0.0), start)
                if silent > self._silence:
                    await self._lost(number, f"has been silent for {silent:.0f} s")
            await asyncio.sleep(min(self._silence / 4, 5.0))

    async def _lost(self, number: int, how: str) -> None:
        sentence = f"{self._named(number)} {how}; run the same command again on all"
        await self._end({"end": EXIT_LOST, "why": sentence, "from": number}, _GRACE_SECONDS / 2)

    async def _end(self, message: Message, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Another process has failed or is lost: all end."""
        if self._ending or self._decided.is_set():
            return
        self._gone.add(message["from"])
        met = self._results["meet"]
        if not met.done():
            self._ending = True
            met.set_exception(JoinError(message["why"]))
            return
        self._verdict = message
        self._decided.set()
        if self.place.process == 0:
            await self._tell_all(message)
        await asyncio.sleep(min(grace_seconds, self._silence / 4))
        if not self._ending:
            self._stop()

    def _stop(self) -> None:
        self._say(f"stopped: {self._verdict['why']}")
        sys.stdout.flush()
        os._exit(self._verdict["end"])

    async def _tell_all(self, message: Message) -> None:
        for number, writer in self._writers.items():
            if number not in self._gone:
                wire.write(writer, message)
        await self._all_gone(_DELIVERY_SECONDS)

    async def _all_gone(self, timeout_seconds: float) -> None:
        """Until the others have closed their ends: bytes on their way are lost otherwise."""
        last = time.monotonic() + timeout_seconds
        while time.monotonic() < last and self._writers.keys() - self._gone:
            await asyncio.sleep(0.02)

    def _named(self, number: int) -> str:
        host = self._hosts.get(number)
        return f"process {number}" + (f" ({host})" if host else "")

    def _missing(self) -> str:
        """Those that are not here yet, as far as this process knows."""
        if self.place.process == 0:
            missing = set(range(self.place.processes)) - self._gathering.get("meet", {}).keys()
            return wire.listed([self._named(number) for number in sorted(missing)])
        if 0 not in self._writers:
            return f"process 0 at {self.place.coordinator} ({self._trouble})"
        return self._trouble or "the other processes"
