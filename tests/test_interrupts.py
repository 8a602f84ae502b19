"""A signal ends the command wherever it arrives, also in the middle of a call of AWS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# A server that never answers the first request, and whose process gets a signal while the client waits for it.
PROGRAM = """
import os, signal, threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from harness import interrupts
from harness.aws.session import Aws
from harness.errors import Interrupted
from harness.spec.profile import LOCAL

seen = []

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        seen.append(self.path)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
aws = Aws(replace(LOCAL, endpoint_url=f"http://127.0.0.1:{server.server_port}"))
aws.client("sagemaker")
interrupts.install()
try:
    aws.call("sagemaker", "list_models")
    print("answered after", len(seen))
except Interrupted as error:
    print("interrupted by", error.signum, "after", len(seen))
"""


def test_a_signal_in_the_middle_of_a_call_is_not_taken_for_a_broken_connection(root: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(root)}
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "interrupted by 15 after 1\n", done.stdout + done.stderr
