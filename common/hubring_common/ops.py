"""One plain HTTP port a process: /healthz, /readyz, /metrics, and /status.json where there is one.

Standard library's server: a handful of requests a second, from probes and scrapers.
"""

import json
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import REGISTRY, generate_latest

from hubring_common import net
from hubring_common.errors import UsageError

log = logging.getLogger(__name__)

Health = Callable[[], tuple[bool, str]]
"""Whether the process is ready to serve, and why not."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """A client that hung up early is not worth a traceback on standard error."""
        log.debug("the ops request of %s broke off", client_address)


class OpsServer:
    """Serves until closed, on a daemon thread. `address` is HOST:PORT; port 0 takes a free one."""

    def __init__(
        self, address: str, ready: Health, status: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        host, port = net.split(address)
        handler = _handler(ready, status)
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            fact = f"cannot serve the ops port on {address}: {error}"
            raise UsageError(fact, todo="give --ops another address, or port 0") from None
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._serve, name="ops", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(ready: Health, status: Callable[[], dict[str, Any]] | None) -> Any:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, kind, body = _answer(self.path, ready, status)
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            log.debug(format, *args)

    return Handler


def _answer(
    path: str, ready: Health, status: Callable[[], dict[str, Any]] | None
) -> tuple[HTTPStatus, str, bytes]:
    if path == "/healthz":
        return HTTPStatus.OK, "text/plain", b"ok\n"
    if path == "/readyz":
        is_ready, why = ready()
        code = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return code, "text/plain", f"{why or 'ready'}\n".encode()
    if path == "/metrics":
        return HTTPStatus.OK, "text/plain; version=0.0.4", generate_latest(REGISTRY)
    if path == "/status.json" and status is not None:
        return HTTPStatus.OK, "application/json", json.dumps(status()).encode()
    return HTTPStatus.NOT_FOUND, "text/plain", b"not here\n"
