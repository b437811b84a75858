"""A client that says exactly what a test tells it to, byte by byte, right or wrong."""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

# The key of RFC 6455 section 1.3 and what a server must make of it.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

# How long one answer may take on a machine that is busy with other things.
ANSWER_S = 30.0

# A bystander's round trip may take this long while another client attacks: the two share two cores with the attacker.
ROUND_TRIP_MAX_S = 2.0


@dataclass
class Response:
    """The head of an HTTP answer and its body."""

    status: int
    fields: dict
    body: bytes


@dataclass
class Frame:
    """One frame of the server."""

    is_final: bool
    opcode: int
    payload: bytes
    # RSV1 to RSV3, as three bits.
    reserved: int = 0


def upgrade(path="/echo", *, without=(), **fields):
    """The head of an opening handshake; `fields` adds or replaces (`sec_websocket_key`), `without` leaves out."""
    all_fields = {
        "host": "localhost",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    all_fields.update({name.replace("_", "-"): value for name, value in fields.items()})
    lines = [f"{name}: {value}" for name, value in all_fields.items() if name not in without]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


def frame(opcode, payload=b"", *, final=True, reserved=0, mask=b"\x37\xfa\x21\x3d", size=None, wide=False):
    """A client's frame; `mask=None` leaves it bare, `size` claims another length, `wide` writes it in 64 bits."""
    claimed = len(payload) if size is None else size
    mask_bit = 0 if mask is None else 0x80
    head = bytes([final << 7 | reserved << 4 | opcode])
    if claimed > 0xFFFF or wide:
        head += struct.pack("!BQ", mask_bit | 127, claimed)
    elif claimed > 125:
        head += struct.pack("!BH", mask_bit | 126, claimed)
    else:
        head += bytes([mask_bit | claimed])
    if mask is None:
        return head + payload
    key = mask * (len(payload) // 4 + 1)
    masked = int.from_bytes(payload) ^ int.from_bytes(key[: len(payload)])
    return head + mask + masked.to_bytes(len(payload))


def close_frame(code=None, reason=b""):
    """A client's Close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


class Connection:
    """One TCP connection to the gateway."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port, *, receive_buffer_size=None, tls=None):
        """Connects to a port of the gateway on the loopback interface, in TLS where it gets a context for that."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_size is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_size)
        try:
            async with asyncio.timeout(ANSWER_S):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
                secured = {} if tls is None else {"ssl": tls, "server_hostname": "localhost"}
                return cls(*await asyncio.open_connection(sock=sock, **secured))
        except BaseException:
            sock.close()
            raise

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_exception):
        self.writer.close()
        # In TLS it is also an error where more comes than anybody reads.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

    async def send(self, data):
        """Sends bytes as they are, and lets what has arrived be read.

        `drain` alone waits for nothing while there is room, so whoever sends without end would read nothing, and lose
        it all when a write meets the peer's end.
        """
        self.writer.write(data)
        await self.writer.drain()
        await asyncio.sleep(0)

    async def response(self):
        """Reads the head of an answer, and its body as `Content-Length` says."""
        async with asyncio.timeout(ANSWER_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head.rstrip("\r\n").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        return Response(int(status_line.split(" ")[1]), fields, body)

    async def accepted(self, head=None):
        """Does the opening handshake, `upgrade()` where no other head is given, and expects to be accepted."""
        await self.send(head or upgrade())
        response = await self.response()
        assert response.status == 101, response
        assert response.fields["sec-websocket-accept"] == ACCEPT, response
        return self

    async def refused(self, head, status):
        """Sends a bad head and expects an answer with this status that names the fault, then the end of file."""
        await self.send(head)
        response = await self.response()
        assert response.status == status, f"{status} expected: {response}"
        assert response.body, "a refusal names the fault in its body"
        await self.end()
        return response

    async def frame(self):
        """Reads one frame of the server, which must not be masked."""
        async with asyncio.timeout(ANSWER_S):
            first, second = await self.reader.readexactly(2)
            assert second < 0x80, "a server's frame is not masked"
            size = second
            if second == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif second == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return Frame(first >= 0x80, first & 0x0F, await self.reader.readexactly(size), first >> 4 & 7)

    async def echo(self, payload, opcode=BINARY):
        """Sends one message and expects it back."""
        await self.send(frame(opcode, payload))
        answer = await self.frame()
        assert answer == Frame(True, opcode, payload), f"another answer to {opcode} {payload[:40]}: {answer}"

    async def closed(self, code=None):
        """Expects a Close with this code, `None` for an empty one, after any frames, which it returns."""
        before = []
        while (last := await self.frame()).opcode != CLOSE:
            before.append(last)
        found = struct.unpack("!H", last.payload[:2])[0] if last.payload else None
        assert found == code, f"Close {code} expected: {found} {last.payload[2:]}"
        return before

    async def close(self, code=1000):
        """Does the whole closing handshake as the side that starts it."""
        await self.send(close_frame(code))
        before = await self.closed(code)
        await self.end()
        return before

    async def end(self):
        """Expects the end of file, and no reset and no byte before it."""
        async with asyncio.timeout(ANSWER_S):
            rest = await self.reader.read()
        assert rest == b"", f"bytes after the last answer: {rest[:100]}"

    async def gone(self):
        """Waits until the server has ended the connection in whatever way."""
        async with asyncio.timeout(ANSWER_S):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass

    def finish_sending(self):
        """Half-closes: the server reads the end of file, and may still send."""
        self.writer.write_eof()

    def reset(self):
        """Ends the connection with a RST."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


class Bystander:
    """A client that echoes all the time, from entry to exit, and must never wait long."""

    def __init__(self, port, *, tls=None):
        self.port, self.tls, self.count, self.slowest_s = port, tls, 0, 0.0
        self._leave, self._hurry, self._done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __aenter__(self):
        self._client = await (await Connection.open(self.port, tls=self.tls)).accepted()
        self._task = asyncio.create_task(self._echo())
        return self

    async def __aexit__(self, *exception):
        self._leave.set()
        self._hurry.set()
        await self._task
        async with self._client:
            await self._client.close()
        if not any(exception):
            assert self.count > 0 and self.slowest_s < ROUND_TRIP_MAX_S, f"{self.slowest_s} s for a round trip"

    async def round_trips(self, count):
        """Returns when so many more have been made, which begin at once."""
        until = self.count + count
        async with asyncio.timeout(ANSWER_S):
            while self.count < until:
                self._done.clear()
                self._hurry.set()
                await self._done.wait()

    async def _echo(self):
        while not self._leave.is_set():
            start = time.monotonic()
            await self._client.echo(b"bystander")
            self.count += 1
            self._done.set()
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await self._hurry.wait()
            self._hurry.clear()
