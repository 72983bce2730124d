"""A TCP relay that can fall silent: nothing passes any more, and nobody is told."""

import select
import socket
import threading


class Relay:
    """Use as a context manager. `address` leads to `target` until `cut`."""

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._peers: dict[socket.socket, socket.socket] = {}
        self._is_cut, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def cut(self) -> None:
        self._is_cut.set()

    @property
    def connections(self) -> int:
        """That were ever made."""
        return len(self._peers) // 2

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._closed.set()
        self._thread.join(5)
        for end in (self._listener, *self._peers):
            end.close()

    def _run(self) -> None:
        open_ends = [self._listener]
        while not self._closed.is_set() and not self._is_cut.is_set():
            for end in select.select(open_ends, [], [], 0.05)[0]:
                if end is self._listener:
                    open_ends += self._accept()
                elif not self._pass_on(end):
                    open_ends.remove(end)

    def _accept(self) -> list[socket.socket]:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._target)
        self._peers |= {near: far, far: near}
        return [near, far]

    def _pass_on(self, end: socket.socket) -> bool:
        try:
            data = end.recv(65536)
            if data:
                self._peers[end].sendall(data)
            else:
                self._peers[end].shutdown(socket.SHUT_WR)
        except OSError:  # one side reset it; the other will hear when the relay closes
            return False
        return bool(data)
