"""An upstream that says exactly what a test tells it to, and keeps every byte that it is sent."""

import asyncio
import base64
import contextlib
import hashlib
import socket
import struct
import time

from client import ACCEPT, ANSWER_S, CLOSE, Bystander, Connection, Frame, frame, upgrade
from harness import PATIENCE_S, Gateway, wait_until

# The head of a 101 to the key that clients of the tests send; lines may be put in before its end.
SWITCHING = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\n"
)
ACCEPTED = f"{SWITCHING}\r\n".encode()


def accepted(fields):
    """The head of a 101 to a request with these fields, whatever its key."""
    keys = [value for name, value in fields if name.lower() == "sec-websocket-key"]
    (accept,) = (hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest() for key in keys)
    return ACCEPTED.replace(ACCEPT.encode(), base64.b64encode(accept))


class Upstream:
    """A listener of the test's, from where it is made to where it is left; a Unix socket where it gets a `path`.

    It speaks TLS where it gets a context for that.
    """

    def __init__(self, *, address="127.0.0.1", port=0, path=None, backlog=512, tls=None):
        self.tls = tls
        if path is None:
            self._listener = socket.create_server((address, port), backlog=backlog)
            self.address, self.port = self._listener.getsockname()
            # As `upstreams` of a route with `service = "websocket"` has it.
            self.url = f"{'ws' if tls is None else 'wss'}://{self.address}:{self.port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(backlog)
            self.url = f"ws+unix://{path}"
        self._listener.setblocking(False)
        # How many connections were taken.
        self.count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.stop()

    def stop(self):
        """Listens no longer. Connections that were taken stay."""
        self._listener.close()

    @property
    def is_listening(self):
        """Whether it was not stopped yet."""
        return self._listener.fileno() >= 0

    async def take(self):
        """Waits for the next connection of the gateway's."""
        async with asyncio.timeout(ANSWER_S):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        self.count += 1
        return await Peer.of(sock, tls=self.tls)

    async def accept(self, answer=ACCEPTED):
        """Waits for the next connection, and answers its request, with a 101 where nothing else is given."""
        peer = await self.take()
        peer.request = await peer.head()
        await peer.send(answer)
        return peer

    async def take_now(self):
        """The connection that waits, if one does."""
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            self.count += 1
            return await Peer.of(sock, tls=self.tls)
        return None

    async def is_asked(self):
        """Whether a connection waits that nobody has taken."""
        peer = await self.take_now()
        if peer:
            await peer.__aexit__()
        return peer is not None

    @contextlib.asynccontextmanager
    async def serving(self, serve):
        """Takes every connection meanwhile, and serves each in a task of its own; the gateway may leave as it likes."""

        async def guarded(sock):
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                async with await Peer.of(sock, tls=self.tls) as peer:
                    await serve(peer)

        async def listen():
            async with asyncio.TaskGroup() as tasks:
                while True:
                    sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
                    self.count += 1
                    tasks.create_task(guarded(sock))

        listening = asyncio.create_task(listen())
        try:
            yield self
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    def answering(self, answer=ACCEPTED):
        """Answers every request meanwhile; `answer` may be a function of the first line and the fields.

        After a 101 it echoes frames; after any other answer it ends the connection.
        """

        async def serve(peer):
            head = await peer.head()
            given = answer(*head) if callable(answer) else answer
            await peer.send(given)
            while given.startswith(b"HTTP/1.1 101"):
                received = await peer.frame(within_s=None)
                await peer.send(server_frame(received.opcode, received.payload))
                if received.opcode == CLOSE:
                    return

        return self.serving(serve)


class Peer(Connection):
    """One connection that the gateway made to an upstream."""

    request = None

    @classmethod
    async def of(cls, sock, *, tls=None):
        """Takes an accepted socket over, and does the handshake of TLS where it gets a context for that."""
        sock.setblocking(False)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        reader = Recorder(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=tls)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    @property
    def received(self):
        """Every byte that has come so far."""
        return bytes(self.reader.received)

    async def head(self):
        """Reads the head of a request: its first line, and its fields as they came, name and value."""
        async with asyncio.timeout(ANSWER_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head[:-4].split("\r\n")
        return line, [tuple(field.split(": ", 1)) for field in lines]

    async def frame(self, within_s=ANSWER_S):
        """Reads one frame of the client's side, which must be masked."""
        async with asyncio.timeout(within_s):
            first, second = await self.reader.readexactly(2)
            assert second >= 0x80, "a client's frame is masked"
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            key = await self.reader.readexactly(4)
            masked = await self.reader.readexactly(size)
        keys = key * (size // 4 + 1)
        payload = (int.from_bytes(masked) ^ int.from_bytes(keys[:size])).to_bytes(size)
        return Frame(first >= 0x80, first & 0x0F, payload)

    def is_ended(self):
        """Whether the gateway has ended its side, and all of it was read."""
        return self.reader.at_eof()


class Recorder(asyncio.StreamReader):
    """A stream that remembers what was read from it, or is still to be read."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.received = bytearray()

    def feed_data(self, data):
        self.received += data
        super().feed_data(data)


def server_frame(opcode, payload=b"", **arguments):
    """A server's frame."""
    return frame(opcode, payload, mask=None, **arguments)


# Two ports, so that what is counted for a bystander stands apart.
CONFIG = """
[gateway]
shards = 1
resolve_interval_ms = 1000
[limits]
close_timeout_ms = 1000
write_timeout_ms = 1000
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[port]]
number = 0
name = "bystander"
address = "127.0.0.1"
[[route]]
path = "/echo"
service = "echo"
ports = ["bystander"]
"""


def route(*upstreams, service="websocket", path="/chat/*", keys="", **limits):
    """A route to these upstreams, or their URLs, with further keys as lines; `limits` are those of upstreams.

    No upstream is ejected unless a limit says so: a test of many failures would stop asking.
    """
    urls = [upstream if isinstance(upstream, str) else upstream.url for upstream in upstreams]
    limits = {"eject_after": 0, "handshake_timeout_ms": 1000, "connect_timeout_ms": 1000} | limits
    if service == "tcp":
        urls = [url.replace("ws://", "tcp://").replace("ws+", "") for url in urls]
        del limits["handshake_timeout_ms"]
    lines = "\n".join(f"{key} = {value}" for key, value in limits.items())
    return f"""
[[route]]
name = "{path.strip("/*")}"
path = "{path}"
service = "{service}"
upstreams = {urls}
ports = ["a"]
{keys}
[route.upstream_limits]
{lines}
"""


def relay(io_driver, routes, scenario, *, config=CONFIG, **arguments):
    """Runs a scenario against a gateway with these routes, beside a bystander on the same shard.

    Afterwards nothing may be left of it. Returns the metrics at rest, in which port `a` has what the scenario did.
    """

    async def beside_bystander(gateway):
        async with Bystander(gateway.ports["bystander"]) as bystander:
            gateway.bystander = bystander
            await scenario(gateway)
        print(f"bystander: {bystander.count} round trips, the slowest {bystander.slowest_s * 1000:.1f} ms")

    with Gateway(config + routes, io_driver=io_driver, **arguments) as gateway:
        descriptors = gateway.descriptor_count()
        asyncio.run(beside_bystander(gateway))
        metrics = gateway.at_rest()
        assert metrics.value("panics_total") == 0, gateway.log()
        assert metrics.value("upstream_connections_active") == 0
        assert metrics.value("handshakes_in_progress") == 0
        wait_until(lambda: gateway.descriptor_count() <= descriptors, "descriptors are back")
    return metrics


async def settle(gateway):
    """Returns when the shard has done all that it could do at the time of the call.

    The bystander's connections are served by the same thread, in the order in which their bytes come.
    """
    await gateway.bystander.round_trips(3)


async def status(gateway, *, path="/chat/room", **fields):
    """What a client is answered that then leaves as it should."""
    async with await Connection.open(gateway.ports["a"]) as client:
        await client.send(upgrade(path, **fields))
        response = await client.response()
        if response.status == 101:
            await client.close()
        else:
            await client.end()
        # Where all that is missing is room, the client is told when to come again.
        assert ("retry-after" in response.fields) == (response.status == 503), response
        return response.status


async def until(condition, what):
    """Asks until the answer is true: what another process has come to know sends no event."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := await condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.02)
    return answer


def ends(metrics):
    """How the connections of port `a` ended."""
    return metrics.by("end", "connections_ended_total", port="a")


def handshakes(metrics):
    """What became of the handshakes of port `a`."""
    return metrics.by("result", "handshakes_total", port="a")


def connects(metrics, route="chat"):
    """What became of the attempts to reach the upstreams of a route."""
    return metrics.by("result", "upstream_connects_total", route=route)
