"""A stand-in for the Hugging Face hub with its URLs, headers and refusals; not a test itself."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator

COMMIT = "5" * 40


class Hub:
    """What the server has, and what it was asked.

    Attributes:
      files: content by `owner/name/file`; large ones are redirected to, as the hub does.
      revisions: known names of revisions.
      gated: repositories that need `token`.
      cut: files of which only the first half is sent.
      requests: (path, the token that came with it or "") of every request.
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.revisions = {"main", "v1.0", COMMIT}
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.token = "hf_right"
        self.requests: list[tuple[str, str]] = []

    def add(self, repository: str, folder) -> None:
        """Puts the files of a folder there."""
        for file in folder.iterdir():
            self.files[f"{repository}/{file.name}"] = file.read_bytes()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A running server; `Hub.url` is for `HF_ENDPOINT`."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.requests.append((self.path, given))
            parts = self.path.strip("/").split("/")
            with contextlib.suppress(OSError):
                if parts[0] == "cdn":
                    return self.send("/".join(parts[1:]), {})
                owner, name, _, revision, file = parts
                self.resolve(f"{owner}/{name}", revision, file, given)

        def resolve(self, repository, revision, file, given):
            if not any(key.startswith(f"{repository}/") for key in hub.files):
                return self.refuse(401, "RepoNotFound")
            if repository in hub.gated and given != hub.token:
                return self.refuse(403 if given else 401, "GatedRepo")
            if revision not in hub.revisions:
                return self.refuse(404, "RevisionNotFound")
            key = f"{repository}/{file}"
            if key not in hub.files:
                return self.refuse(404, "EntryNotFound")
            if not file.endswith((".safetensors", ".bin")):
                return self.send(key, {"X-Repo-Commit": COMMIT, "ETag": '"0123"'})
            digest = hashlib.sha256(hub.files[key]).hexdigest()
            self.send_response(302)
            self.send_header("Location", f"/cdn/{key}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(hub.files[key])))
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.end_headers()

        def send(self, key, headers):
            content = hub.files[key]
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if key in hub.cut else content)

        def refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
        thread.join()
