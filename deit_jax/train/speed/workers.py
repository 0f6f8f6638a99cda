"""Worker processes that are measured beside this one. Needs the standard library alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class WorkerFailed(RuntimeError):
    """A worker process ended or reported an error, which is the message."""


class Worker:
    """A subprocess that answers requests, one JSON object per line in both directions.

    The case is passed as JSON in the last argument; the first answer, `ready`, means that it can
    be measured.
    """

    def __init__(self, command: Sequence[str], case: Any, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [*command, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        try:
            self.ready = self._read_answer()
        except WorkerFailed:
            self.close()
            raise

    def request(self, **request: Any) -> dict[str, Any]:
        """Sends one request and returns the answer.

        Raises:
          WorkerFailed: the worker did not answer it.
        """
        assert self._process.stdin
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerFailed(f"the worker exited with status {self._process.wait()}") from None
        return self._read_answer()

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            # Libraries may print to the same stream.
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise WorkerFailed(answer["error"])
                return answer
        raise WorkerFailed(f"the worker exited with status {self._process.wait()}")

    def close(self) -> None:
        """Ends the process and waits until it has exited, so that its memory is free."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has exited already
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve(open_case: Callable[[Any], tuple[dict, Mapping[str, Callable[..., dict]]]]) -> None:
    """The worker's side: `open_case(case)` returns the first answer and the request handlers.

    A request is `{"do": name, ...}`; its other entries are keyword arguments of handler `name`.
    """
    try:
        ready, handlers = open_case(json.loads(sys.argv[-1]))
        print(json.dumps(ready), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(handlers[request.pop("do")](**request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {str(error)[:2000]}"}), flush=True)
        raise SystemExit(1) from error
