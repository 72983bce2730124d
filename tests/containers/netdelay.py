"""netdelay QUEUE SECONDS: hold each packet of a netfilter queue for so long, then let it go.

For kernels without netem. It speaks to the kernel over netlink (linux/netfilter/nfnetlink_queue.h)
in the network namespace that it is started in; needs root. Says "ready" once it is bound.
"""

import heapq
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

NETLINK_NETFILTER, SOL_NETLINK, NETLINK_NO_ENOBUFS = 12, 270, 5
QUEUE = 3 << 8  # NFNL_SUBSYS_QUEUE; the kind of message stands in the low byte
PACKET, VERDICT, CONFIG = QUEUE | 0, QUEUE | 1, QUEUE | 2
ACCEPT = 1
BUFFER = 8 << 20
LONGEST = 65536


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x7FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


class Queue:
    def __init__(self, number: int) -> None:
        self._number = number
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, BUFFER)  # SO_RCVBUFFORCE
        self.socket.bind((0, 0))
        self.socket.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
        self._send(CONFIG, attribute(1, struct.pack(">BBH", 1, 0, 0)))  # bind
        self._send(CONFIG, attribute(2, struct.pack(">IB", 0, 1)))  # of a packet, its number only
        self._send(CONFIG, attribute(3, struct.pack(">I", LONGEST)))
        whole = struct.pack(">I", 4)  # NFQA_CFG_F_GSO: packets as they are, not cut up
        self._send(CONFIG, attribute(4, whole) + attribute(5, whole))

    def accept(self, packet: int) -> None:
        self._send(VERDICT, attribute(2, struct.pack(">II", ACCEPT, packet)))

    def packets(self) -> Iterator[int]:
        """The numbers of those that wait now."""
        data = self.socket.recv(LONGEST)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            if kind == PACKET:
                yield from self._numbers(data[20:length])
            data = data[(length + 3) & ~3 :]

    @staticmethod
    def _numbers(body: bytes) -> Iterator[int]:
        for kind, value in attributes(body):
            if kind == 1:  # NFQA_PACKET_HDR
                yield struct.unpack_from(">I", value)[0]

    def _send(self, kind: int, body: bytes) -> None:
        body = struct.pack(">BBH", 0, 0, self._number) + body
        self.socket.send(struct.pack("=IHHII", 16 + len(body), kind, 1, 0, 0) + body)


def main(number: int, seconds: float) -> None:
    queue, held = Queue(number), []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        while held and held[0][0] <= time.monotonic():
            queue.accept(heapq.heappop(held)[1])
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        if select.select([queue.socket], [], [], wait)[0]:
            for packet in queue.packets():
                heapq.heappush(held, (time.monotonic() + seconds, packet))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
