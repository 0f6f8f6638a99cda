"""The processes of a run meet, compare what they have, and end together."""

import concurrent.futures
import contextlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from deit_jax.distributed import Processes
from deit_jax.distributed.environments import Place
from deit_jax.distributed.line import EXIT_LOST, JoinError, Line
from deit_jax.errors import ConfigError


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def open_line():
    """`open_line(number, of)`: a line of this process under that number, on one port."""
    port, said = free_port(), []

    def open_one(number, of=3, **changed):
        place = Place(of, number, f"127.0.0.1:{port}", "test", **changed)
        return Line(place, silence_seconds=20, say=said.append)

    open_one.port, open_one.said = port, said
    return open_one


@contextlib.contextmanager
def threads(*calls):
    """Futures of calls that run at once."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        yield [pool.submit(call) for call in calls]


def run(line, facts):
    line.meet(timeout_seconds=20)
    try:
        Processes(line.place, line).agree("facts", facts)
        return "agreed"
    except ConfigError as error:
        return str(error)
    finally:
        line.leave()


@pytest.mark.parametrize(
    "facts, expected",
    [
        ([{"a": 1, "b": "x"}] * 3, "agreed"),
        ([{"a": 1}, {"a": 2}, {"a": 1}], r"a: 1 \(process 0, 2\), 2 \(process 1\)"),
        ([{"a": 1}, {"a": 1}, {}], r"a: 1 \(process 0, 1\), \(absent\) \(process 2\)"),
    ],
)  # fmt: skip
def test_all_hear_the_same_of_what_differs(open_line, facts, expected):
    lines = [open_line(number) for number in range(3)]
    with threads(*(lambda i=i: run(lines[i], facts[i]) for i in (2, 0, 1))) as results:
        texts = {result.result(timeout=30) for result in results}
    assert len(texts) == 1 and re.search(expected, texts.pop())


def meeting(line, seconds):
    try:
        line.meet(timeout_seconds=seconds)
        return ""
    except JoinError as error:
        assert error.exit_code == 2
        return str(error)


def test_who_is_missing_is_named_on_all(open_line):
    hosts = ("a", "b", "c")
    lines = [open_line(number, hosts=hosts) for number in (0, 1)]
    start = time.monotonic()
    with threads(*(lambda line=line: meeting(line, 4) for line in lines)) as results:
        first, second = (result.result(timeout=30) for result in results)
    assert time.monotonic() - start < 8
    assert first == "process 2 (c) did not join within 4 s (--join_timeout_seconds)"
    assert "process 2 (c) did not join" in second
    waiting = [text for text in open_line.said if text.startswith("waiting for")]
    assert waiting and all("process 2 (c)" in text for text in waiting)


@pytest.mark.parametrize(
    "address, reason",
    [("127.0.0.1", "refused|no answer"), ("no.such.host.invalid", "its name is unknown")],
)
def test_waiting_for_process_0_says_where_and_why(address, reason):
    place = Place(2, 1, f"{address}:{free_port()}", "test")
    said = []
    error = meeting(Line(place, silence_seconds=20, say=said.append), 3.5)
    assert re.match(
        rf"process 0 at {address}:\d+ \(.*({reason})\) did not join within 3.5 s", error
    )
    assert re.match(rf"waiting for process 0 at {address}.*: 3 of 3.5 s", said[0])


def test_a_stranger_and_a_second_of_a_number_are_refused(open_line):
    lines = [open_line(0, of=2), open_line(1, of=3)]
    with threads(*(lambda line=line: meeting(line, 4) for line in lines)) as results:
        first, second = (result.result(timeout=30) for result in results)
    assert "it is number 1 of 3, and process 0 is one of 2" in second
    assert "process 1 did not join" in first
    assert any("is refused" in text for text in open_line.said)


def test_what_is_not_a_message_disturbs_nobody(open_line):
    lines = [open_line(number, of=2) for number in (0, 1)]

    def noise():
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": "x"}\n', b"\x00" * 99, b""):
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", open_line.port), 1) as stranger:
                    stranger.sendall(text)

    first = lambda: run(lines[0], {})

    def second():
        time.sleep(0.5)
        noise()
        return run(lines[1], {})

    with threads(first, second) as results:
        assert [result.result(timeout=30) for result in results] == ["agreed"] * 2


def long(*values):
    return pytest.param(*values, marks=pytest.mark.long)


PROCESS = """
import sys, threading, time
from deit_jax.distributed.environments import Place
from deit_jax.distributed.line import Line
number, port, act = int(sys.argv[1]), sys.argv[2], sys.argv[3]
place, say = Place(3, number, f"127.0.0.1:{port}", ""), lambda text: print(text, flush=True)
line = Line(place, silence_seconds=3, say=say)
line.meet(timeout_seconds=60)
print("met", flush=True)
if act == "fail":
    line.fail(7, "ended: its reason")
    sys.exit(7)
if act == "hang":
    line._loop.call_soon_threadsafe(time.sleep, 60)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    "who, act, status, sentence",
    [
        (1, "fail", 7, r"stopped: process 1 \(.*\) ended: its reason"),
        long(0, "fail", 7, r"stopped: process 0 \(.*\) ended: its reason"),
        long(1, "kill", EXIT_LOST, r"stopped: process 1 \(.*\) ended without a word; run the same"),
        (0, "kill", EXIT_LOST, r"stopped: process 0 \(.*\) ended without a word; run the same"),
        long(2, "hang", EXIT_LOST, r"stopped: process 2 \(.*\) has been silent for \d+ s; run"),
    ],
)  # fmt: skip
def test_the_others_end_with_one_sentence(who, act, status, sentence):
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(number), port, act if number == who else ""],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    try:
        for process in processes:
            while process.stdout.readline() != "met\n":
                assert process.poll() is None
        start = time.monotonic()
        if act == "kill":
            processes[who].send_signal(signal.SIGKILL)
        for number, process in enumerate(processes):
            if number == who:
                continue
            text, _ = process.communicate(timeout=20)
            assert (process.returncode, text.count("\n")) == (status, 1), text
            assert re.match(sentence, text)
        assert time.monotonic() - start < 10
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
