"""A web server on this machine that serves a folder with range requests, and fails on request."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultyServer:
    """Serves a folder; `faults` is a list of what the next downloads meet: a status such as 503, "drop" or "stall"."""

    def __init__(self, folder: Path):
        self.faults: list[int | str] = []
        self.met: list[int | str] = []
        self.closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.respond(body=False)

            def do_GET(self):
                self.respond(body=True)

            def respond(self, body: bool) -> None:
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data, status = path.read_bytes(), 200
                span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                headers = {"Accept-Ranges": "bytes"}
                if span:
                    first, last = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                    data, status = data[first : last + 1], 206
                fault = server.faults.pop(0) if body and server.faults else None
                if fault is not None:
                    server.met.append(fault)
                if fault == "stall":  # the connection stays open, and nothing comes
                    server.closed.wait()
                    self.close_connection = True
                    return
                if isinstance(fault, int):
                    self.send_error(fault)
                    return
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(data[: len(data) // 2] if fault == "drop" else data)
                    if fault == "drop":
                        self.close_connection = True
                        self.connection.close()

            def log_message(self, *arguments) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()
