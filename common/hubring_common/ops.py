"""One plain HTTP port a process: /healthz, /readyz, /metrics, and the pages that it is given.

Standard library's server: a handful of requests a second, from probes, scrapers and people.
Whoever does not read or does not ask is dropped after a while, and holds up nobody meanwhile.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from hubring_common import net
from hubring_common.errors import HubringError, UsageError

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a client may take to say what it wants, or to take what it is sent."""

Health = Callable[[], tuple[bool, str]]
"""Whether the process is ready to serve, and why not."""


class Stream(Protocol):
    """What is sent piece by piece until it ends, or the client goes."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes | Stream
    kind: str = "text/plain; charset=utf-8"
    code: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Page = Callable[[], Answer]
"""Called on a thread of the request's own. A HubringError becomes 503 and its words."""


def as_json(value: Any) -> Answer:
    return Answer(json.dumps(value, allow_nan=False).encode(), "application/json")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """A client that hung up early is not worth a traceback on standard error."""
        log.debug("the ops request of %s broke off", client_address)


class OpsServer:
    """Serves until closed, on a daemon thread. `address` is HOST:PORT; port 0 takes a free one.

    `pages`: path -> what is there. `metrics`: shown beside those of the process itself.
    """

    def __init__(
        self,
        address: str,
        ready: Health,
        pages: Mapping[str, Page] | None = None,
        metrics: CollectorRegistry | None = None,
    ) -> None:
        host, port = net.split(address)
        registries = [REGISTRY, metrics] if metrics else [REGISTRY]
        standard: dict[str, Page] = {
            "/healthz": lambda: Answer(b"ok\n"),
            "/readyz": lambda: _readiness(ready),
            "/metrics": lambda: _metrics(registries),
        }
        try:
            self._server = _Server((host, port), _handler({**standard, **(pages or {})}))
        except OSError as error:
            fact = f"cannot serve the ops port on {address}: {error}"
            raise UsageError(fact, todo="give --ops another address, or port 0") from None
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._serve, name="ops", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Take no more requests. Whoever gave a stream ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(pages: Mapping[str, Page]) -> Any:
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE
        server_version, sys_version = "hubring", ""

        def do_GET(self) -> None:
            answer = _answer(pages, self.path.partition("?")[0])
            self.send_response(answer.code)
            self.send_header("Content-Type", answer.kind)
            self.send_header("X-Content-Type-Options", "nosniff")
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if isinstance(answer.body, bytes):
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
            else:
                self._stream(answer.body)

        def _stream(self, stream: Stream) -> None:
            with closing(stream):
                self.end_headers()
                for piece in stream:
                    self.wfile.write(piece)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            log.debug(format, *args)

    return Handler


def _answer(pages: Mapping[str, Page], path: str) -> Answer:
    page = pages.get(path)
    if page is None:
        return Answer(b"not here\n", code=HTTPStatus.NOT_FOUND)
    try:
        return page()
    except HubringError as error:
        return Answer(f"{error}\n".encode(), code=HTTPStatus.SERVICE_UNAVAILABLE)


def _readiness(ready: Health) -> Answer:
    is_ready, why = ready()
    code = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(f"{why or 'ready'}\n".encode(), code=code)


def _metrics(registries: list[CollectorRegistry]) -> Answer:
    text = b"".join(generate_latest(registry) for registry in registries)
    return Answer(text, "text/plain; version=0.0.4; charset=utf-8")
