"""A web server of the test's that does what the path of a request says."""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections import Counter

BLOCK_SIZE = 64 << 10
# Prime, so that no block is like the next.
PERIOD = bytes(range(251))


def content(size):
    """The content of `/size/SIZE`."""
    return (PERIOD * (size // len(PERIOD) + 1))[:size]


class WebServer:
    """HTTP/1.1 on a port of the loopback interface, whose connections stay from one request to the next.

    - `/size/SIZE` has that much content, of a stated size; `/chunks/SIZE` has the same in chunks, and a trailer.
    - `/digest` reads the body of the request and says what it was.
    - `/hold` answers once `release` is called, unless it is left before.
    - `/endless` sends without end, until the connection breaks.
    """

    def __init__(self):
        # Bound from the start, so that nobody gets the port meanwhile.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        # How many requests came, by the first part of the path, and how many of them are under way.
        self.asked, self.under_way = Counter(), Counter()
        # The fields of the latest request; what comes twice is a fault.
        self.latest = {}
        self._released, self._changed = None, None
        self._writers = set()

    async def __aenter__(self):
        self._released, self._changed = asyncio.Event(), asyncio.Event()
        self._server = await asyncio.start_server(self._serve, sock=self._listener)
        return self

    async def __aexit__(self, *_exception):
        self._server.close()
        self.release()
        for writer in self._writers:
            writer.transport.abort()
        await self.until(lambda: not self._writers, "all connections have ended")

    def release(self):
        """Lets requests to `/hold` be answered, those that are still to come too."""
        self._released.set()

    async def until(self, condition, what):
        """Waits until what was asked makes the condition true."""
        try:
            async with asyncio.timeout(30):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{what}: {self.asked} asked, {self.under_way} under way") from None

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await self._exchange(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()
            self._changed.set()

    async def _exchange(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head[:-4].split("\r\n")
        method, target, _ = line.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert len(fields) == len(lines), f"a field comes twice: {lines}"
        self.latest = fields
        _, kind, *rest = target.split("/")
        self.asked[kind] += 1
        self.under_way[kind] += 1
        self._changed.set()
        try:
            if kind in ("size", "chunks"):
                await self._send(writer, method, int(rest[0]), in_chunks=kind == "chunks")
            elif kind == "digest":
                size, digest, trailers = await self._body(reader, fields)
                answer = json.dumps({"size": size, "digest": digest, "trailers": trailers}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            elif kind == "hold":
                await self._hold(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld")
            elif kind == "endless":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"%x\r\n" % BLOCK_SIZE + bytes(BLOCK_SIZE) + b"\r\n")
                    await writer.drain()
            else:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        finally:
            self.under_way[kind] -= 1
            self._changed.set()

    async def _hold(self, reader):
        """Waits for the release; fails where the connection ends before."""
        released, left = asyncio.create_task(self._released.wait()), asyncio.create_task(reader.read(1))
        await asyncio.wait([released, left], return_when=asyncio.FIRST_COMPLETED)
        is_released = released.done()
        for task in (released, left):
            task.cancel()
        await asyncio.gather(released, left, return_exceptions=True)
        if not is_released:
            raise ConnectionResetError

    async def _send(self, writer, method, size, in_chunks):
        framing = b"Transfer-Encoding: chunked\r\nTrailer: X-Sum" if in_chunks else b"Content-Length: %d" % size
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
        if method == "HEAD":
            return
        whole = content(size)
        for offset in range(0, size, BLOCK_SIZE):
            block = whole[offset : offset + BLOCK_SIZE]
            writer.write(b"%x\r\n" % len(block) + block + b"\r\n" if in_chunks else block)
            await writer.drain()
        if in_chunks:
            writer.write(b"0\r\nX-Sum: %b\r\n\r\n" % hashlib.sha256(whole).hexdigest().encode())

    async def _body(self, reader, fields):
        """The size and digest of a body, and its trailers."""
        size, digest, trailers = 0, hashlib.sha256(), {}

        async def take(count):
            nonlocal size
            size += count
            while count > 0:
                part = await reader.read(min(count, BLOCK_SIZE))
                if not part:
                    raise asyncio.IncompleteReadError(b"", count)
                digest.update(part)
                count -= len(part)

        if "transfer-encoding" not in fields:
            await take(int(fields.get("content-length", 0)))
            return size, digest.hexdigest(), trailers
        while count := int(await reader.readuntil(b"\r\n"), 16):
            await take(count)
            assert await reader.readexactly(2) == b"\r\n"
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode().partition(":")
            trailers[name.lower()] = value.strip()
        return size, digest.hexdigest(), trailers
