"""Exit 0 where this machine's port answers /healthz. For health checks each few seconds: it
imports nothing but the standard library's sockets (`python3 -S healthz.py PORT`).
"""

import socket
import sys

REQUEST = b"GET /healthz HTTP/1.0\r\n\r\n"

with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=2) as connection:
    connection.sendall(REQUEST)
    status_line = connection.makefile("rb").readline()
sys.exit(0 if b" 200 " in status_line else 1)
