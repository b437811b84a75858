"""websockify as a proxy from WebSocket to TCP: server.py PORT UPSTREAM_PORT. It prints its URL once it listens.

websockify serves each connection in a process of its own, which it forks.
"""

import logging
import socket
import sys

from websockify.websocketproxy import ProxyRequestHandler, WebSocketProxy

port, upstream_port = map(int, sys.argv[1:])
logging.basicConfig(level=logging.WARNING)
listener = socket.create_server(("127.0.0.1", port), backlog=4096)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
proxy = WebSocketProxy(
    RequestHandlerClass=ProxyRequestHandler,
    listen_fd=listener.fileno(),
    target_host="127.0.0.1",
    target_port=upstream_port,
)
print(f"ws://127.0.0.1:{port}/", flush=True)
proxy.start_server()
