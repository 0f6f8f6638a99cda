"""A Google Cloud Storage server in memory: the part of its JSON API that clients here use.

`Server` answers on 127.0.0.1 from a thread; `environment()` is what makes gcsfs, TensorStore
and whatever builds on them ask it instead of Google. Not a test itself.
"""

import contextlib
import dataclasses
import email
import email.policy
import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator


@dataclasses.dataclass
class Stored:
    content: bytes
    generation: int
    updated: str


class Refused(Exception):
    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


class Server:
    """Buckets of objects.

    Attributes:
      buckets: name of the bucket -> name of the object -> object.
      forbidden: buckets that answer 403.
      unavailable: while set, everything is answered with 503.
      requests: method and path of every request, in order.
    """

    def __init__(self, *buckets: str) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {name: {} for name in buckets}
        self.forbidden: set[str] = set()
        self.unavailable = False
        self.refused = 0
        self.requests: list[str] = []
        self.sessions: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.lock = threading.RLock()
        self._generation = 1
        handler = type("Bound", (Handler,), {"store": self})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        # Clients that are killed, or need an answer no longer, hang up.
        self._http.handle_error = lambda *_: None  # pyright: ignore
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            # No look-up of credentials on the network.
            "NO_GCE_CHECK": "true",
        }

    @contextlib.contextmanager
    def outage(self, seconds: float) -> Iterator[None]:
        """503 for everything, from now on for so long."""
        self.unavailable = True
        timer = threading.Timer(seconds, lambda: setattr(self, "unavailable", False))
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def content(self, bucket: str, name: str) -> bytes:
        return self.buckets[bucket][name].content

    def put(self, bucket: str, name: str, content: bytes) -> Stored:
        with self.lock:
            self._generation += 1
            now = time.time()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            stamp += f".{int(now % 1 * 1000):03d}Z"
            stored = Stored(bytes(content), self._generation, stamp)
            self.buckets[bucket][name] = stored
            return stored


class Handler(http.server.BaseHTTPRequestHandler):
    store: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        # Small answers must not wait for the client's acknowledgment of the last one.
        self.connection.setsockopt(6, 1, True)

    def do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = self._chunked()
        else:
            body = self.rfile.read(length)
        self.store.requests.append(f"{self.command} {self.path}")
        try:
            if self.store.unavailable:
                self.store.refused += 1
                raise Refused(503, "try again later")
            parts = urllib.parse.urlsplit(self.path)
            query = {k: v[-1] for k, v in urllib.parse.parse_qs(parts.query).items()}
            with self.store.lock:
                self._route(parts.path, query, body)
        except Refused as error:
            value = {"error": {"code": error.status, "message": error.message}}
            self._answer(error.status, json.dumps(value).encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Type" not in (headers or {}):
            self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: dict) -> None:
        self._answer(200, json.dumps(value).encode())

    def _bucket(self, name: str) -> dict[str, Stored]:
        if name in self.store.forbidden:
            raise Refused(403, "caller does not have storage.objects access to the bucket")
        if name not in self.store.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        return self.store.buckets[name]

    def _object(self, bucket: str, name: str) -> Stored:
        if name not in self._bucket(bucket):
            raise Refused(404, f"No such object: {bucket}/{name}")
        return self.store.buckets[bucket][name]

    def _check(self, bucket: str, name: str, query: dict) -> None:
        """The preconditions on the generation; 0 means that there is no object."""
        stored = self._bucket(bucket).get(name)
        current = stored.generation if stored else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != current:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == current:
            if self.command == "GET":
                raise Refused(304)
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def _route(self, path: str, query: dict, body: bytes) -> None:
        if path.startswith("/batch/"):
            return self._batch(body)
        unquote = urllib.parse.unquote
        where, _, rest = path.partition("/b/")
        bucket, _, rest = rest.partition("/o")
        bucket, name = unquote(bucket), unquote(rest.removeprefix("/"))
        if where.startswith("/upload"):
            return self._upload(bucket, query, body)
        if path.endswith(f"/b/{bucket}"):
            self._bucket(bucket)
            return self._json({"kind": "storage#bucket", "name": bucket, "location": "HERE"})
        for action in ("/rewriteTo/b/", "/copyTo/b/", "/moveTo/o/"):
            if action in rest:
                source, _, target = rest.removeprefix("/").partition(action)
                to, _, target_name = target.partition("/o/")
                if action == "/moveTo/o/":
                    to, target_name = bucket, target
                return self._copy(
                    bucket, unquote(source), unquote(to), unquote(target_name), action
                )
        if not name:
            return self._list(bucket, query)
        if self.command == "DELETE":
            self._object(bucket, name)
            self._check(bucket, name, query)
            del self.store.buckets[bucket][name]
            return self._answer(204, b"")
        stored = self._object(bucket, name)
        self._check(bucket, name, query)
        if query.get("alt") == "media" or where.startswith("/download"):
            return self._media(stored)
        self._json(resource(bucket, name, stored))

    def _media(self, stored: Stored) -> None:
        content, status = stored.content, 200
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(stored.generation),
            "x-goog-stored-content-length": str(len(content)),
        }
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin = int(first) if first else max(0, len(content) - int(last))
            end = min(int(last), len(content) - 1) if first and last else len(content) - 1
            if begin >= len(content):
                raise Refused(416, "Requested range not satisfiable")
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, status = content[begin : end + 1], 206
        self._answer(status, content, headers)

    def _list(self, bucket: str, query: dict) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name, stored in sorted(self._bucket(bucket).items()):
            start, end = query.get("startOffset", ""), query.get("endOffset")
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            inner = name[len(prefix) :]
            if delimiter and delimiter in inner:
                prefixes.add(prefix + inner.split(delimiter)[0] + delimiter)
                if not (query.get("includeTrailingDelimiter") == "true" and name in prefixes):
                    continue
            items.append(resource(bucket, name, stored))
        begin, count = int(query.get("pageToken", 0)), int(query.get("maxResults", 1000))
        page: dict = {"kind": "storage#objects", "items": items[begin : begin + count]}
        if not begin:
            page["prefixes"] = sorted(prefixes)
        if begin + count < len(items):
            page["nextPageToken"] = str(begin + count)
        self._json(page)

    def _upload(self, bucket: str, query: dict, body: bytes) -> None:
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self._continue(query["upload_id"], body)
        if kind == "resumable":
            name = json.loads(body or b"{}").get("name") or query["name"]
            self._check(bucket, name, query)
            key = str(len(self.store.sessions))
            self.store.sessions[key] = (bucket, name, query, bytearray())
            location = f"{self.store.url}/upload/storage/v1/b/{bucket}/o?upload_id={key}"
            return self._answer(200, b"", {"Location": location})
        if kind == "multipart":
            kinds = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            message = email.message_from_bytes(kinds + body, policy=email.policy.HTTP)
            about, _ = message.iter_parts()
            name = json.loads(about.get_content())["name"]
            # Not through the parser, which changes the ends of lines.
            mark = b"--" + message.get_boundary().encode()
            part = body.split(mark, 2)[2].rsplit(mark, 1)[0]
            head = b"\r\n\r\n" if b"\r\n\r\n" in part[:400] else b"\n\n"
            content = part.split(head, 1)[1]
            content = content[: -2 if content.endswith(b"\r\n") and head[0] == 13 else -1]
        else:
            name, content = query["name"], body
        self._check(bucket, name, query)
        self._json(resource(bucket, name, self.store.put(bucket, name, content)))

    def _continue(self, key: str, body: bytes) -> None:
        bucket, name, query, content = self.store.sessions[key]
        if self.command == "DELETE":
            del self.store.sessions[key]
            return self._answer(499, b"")
        span, _, total = self.headers.get("Content-Range", "bytes */*")[6:].partition("/")
        if span != "*":
            begin = int(span.split("-")[0])
            content[begin:] = body
        if total == "*" or len(content) < int(total):
            had = {"Range": f"bytes=0-{len(content) - 1}"} if content else {}
            return self._answer(308, b"", had)
        self._check(bucket, name, query)
        self._json(resource(bucket, name, self.store.put(bucket, name, content)))

    def _copy(self, bucket: str, source: str, to: str, target: str, action: str) -> None:
        stored = self._object(bucket, source)
        self._bucket(to)
        copied = resource(to, target, self.store.put(to, target, stored.content))
        if action == "/moveTo/o/":
            del self.store.buckets[bucket][source]
        if action == "/rewriteTo/b/":
            size = str(len(stored.content))
            copied = {"done": True, "resource": copied, "objectSize": size}
        self._json(copied)

    def _batch(self, body: bytes) -> None:
        """Deletions of several objects in one request."""
        kinds = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
        message = email.message_from_bytes(kinds + body)
        answers = []
        for part in message.get_payload():
            line = part.get_payload().strip().splitlines()[0]
            path = urllib.parse.urlsplit(line.split(" ")[1]).path
            bucket, _, name = path.partition("/b/")[2].partition("/o/")
            objects = self._bucket(urllib.parse.unquote(bucket))
            found = objects.pop(urllib.parse.unquote(name), None)
            status = "204 No Content" if found else "404 Not Found"
            number = (part["Content-ID"] or "").strip("<>")
            answers.append(
                f"--answers\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>"
                f"\r\n\r\nHTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(answers) + "--answers--\r\n"
        self._answer(200, text.encode(), {"Content-Type": "multipart/mixed; boundary=answers"})


def resource(bucket: str, name: str, stored: Stored) -> dict:
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": "1",
        "size": str(len(stored.content)),
        "updated": stored.updated,
        "timeCreated": stored.updated,
        "storageClass": "STANDARD",
        "contentType": "application/octet-stream",
    }
