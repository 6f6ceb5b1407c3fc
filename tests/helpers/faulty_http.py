"""A web server that misbehaves in as many ways as its paths name."""

import gzip
import http.server
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b"what was asked for"
RAW = {
    "good": OK + b"Content-Length: 18\r\n\r\n" + BODY,
    "short": OK + b"Content-Length: 50\r\n\r\n" + BODY,
    "short-chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello",
    "bad-chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "bad-gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 18\r\n\r\n" + BODY,
    "half-deflate": OK + b"Content-Encoding: deflate\r\nContent-Length: 18\r\n\r\n" + BODY,
    "damaged-gzip": OK
    + b"Content-Encoding: gzip\r\nContent-Length: 48\r\n\r\n"
    + gzip.compress(BODY * 100)[:20]
    + bytes(28),
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "binary": bytes(range(256)),
    "long-header": OK + b"X: " + b"a" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "many-headers": OK + b"".join(b"X%d: a\r\n" % number for number in range(20_000)) + b"\r\n",
    "large": OK + b"Content-Length: 2097152\r\n\r\n" + bytes(2 << 20),
    "large-of-unknown-length": OK + b"\r\n" + bytes(2 << 20),
    "close": b"",
}
REDIRECTS = {
    "loop": "/loop",
    "to-file": "file:///etc/passwd",
    "to-ftp": "ftp://10.1.2.3/y",
    "to-data": "data:,secret",
    "to-script": "javascript:alert(1)",
    "to-bad-name": "http://a..b/x",
    "to-bad-port": "http://10.1.2.3:99999/",
    "to-bad-address": "http://[::1",
    "to-refused": "http://127.0.0.1:1/",
    "to-404": "/404",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path[1:].partition("?")[0]
        self.close_connection = True
        if path in RAW:
            self.wfile.write(RAW[path])
        elif path == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif path in ("silent", "stalled"):
            self.wfile.write(RAW["short"] if path == "stalled" else b"")
            self.server.ends.wait(10)
        else:
            self.send_response(302 if path in REDIRECTS else int(path))
            self.send_header("Location", REDIRECTS.get(path, ""))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *arguments) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments) -> None:
        """Say nothing: clients end these connections."""


@contextmanager
def faulty_server(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve on a free port; yields the address, which ends in a slash."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.ends = threading.Event()
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/"
        finally:
            server.ends.set()
            server.shutdown()
