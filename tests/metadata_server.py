"""A stand-in for the metadata server of a TPU VM; not a test itself."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator, Mapping

PATH = "/computeMetadata/v1/instance/attributes/"


@contextlib.contextmanager
def serving(attributes: Mapping[str, str], *, delay_seconds: float = 0.0) -> Iterator[str]:
    """`host:port` of a server that knows these attributes, for `GCE_METADATA_IP`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(delay_seconds)
            key = self.path.removeprefix(PATH)
            asked = self.headers["Metadata-Flavor"] == "Google" and key in attributes
            text = attributes[key].encode() if asked else b"not found"
            with contextlib.suppress(OSError):
                self.send_response(200 if asked else 404)
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
