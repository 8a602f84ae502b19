"""DJL Serving's place in tests of the proxy: `python -m tests.proxy.server -f config.properties`.

/ping and /invocations over real HTTP, answered by tests/proxy/words.py; PAUSE is the seconds between tokens.
"""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.proxy.words import answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, "application/json", b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, accept = self.headers.get("Content-Type", ""), self.headers.get("Accept", "")
        reply = answer(body, kind, accept, float(os.environ.get("PAUSE", "0")))
        if "stream" not in reply.content_type and "lines" not in reply.content_type:
            self._send(reply.status, reply.content_type, b"".join(reply.body))
            return
        self.send_response(200)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        try:
            for part in reply.body:
                if part:
                    self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    self.wfile.flush()
                    sent += 1
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            print(f"the client left after {sent} parts", flush=True)
            self.close_connection = True

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    config = Path(sys.argv[sys.argv.index("-f") + 1]).read_text()
    port = int(config.split("inference_address=http://127.0.0.1:")[1].split()[0])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
