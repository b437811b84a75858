"""Servers and clients that people use, npm's ws and Python's websockets: all do the same things, and tell alike."""

import asyncio
import contextlib
import hashlib
import io
import json
import random
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import websockets
from websockets.datastructures import Headers
from websockets.http11 import Response

from harness import PATIENCE_S

HERE = Path(__file__).parent

REFUSAL = "this is the upstream\n"
CHALLENGE = 'Basic realm="upstream"'

# Around the two places where a frame's header grows (RFC 6455 section 5.2), and the largest.
EDGE_SIZES = [0, 1, 125, 126, 127, 65535, 65536, 1 << 20]


@dataclass
class Messages:
    """Messages that a client sends: their bytes one after the other in a file, and what each is."""

    file: Path
    # Of each its size, whether it is binary, and whether it is sent in fragments.
    shapes: list
    payload_size: int

    @classmethod
    def write(cls, file, count, seed):
        """Messages of 0 to 1 MiB, nearly all of them small; half of them compress well, and half not at all."""
        rng = random.Random(seed)
        sizes = [*EDGE_SIZES, *(rng.randrange(1 << rng.choices([10, 15, 20], [950, 47, 3])[0]) for _ in range(count))]
        shapes, payload_size = [], 0
        with file.open("wb") as out:
            for size in rng.sample(sizes[:count], count):
                is_binary = rng.random() < 0.5
                if is_binary:
                    data = rng.randbytes(size)
                else:
                    # Characters of every length that UTF-8 has, each message different from its neighbours.
                    unit = f"{rng.random()} aé€😀 "
                    data = (unit * (size // len(unit) + 1)).encode()[:size].decode(errors="ignore").encode()
                    data += b"x" * (size - len(data))
                out.write(data)
                payload_size += len(data)
                shapes.append([len(data), is_binary, rng.random() < 0.1])
        return cls(file, shapes, payload_size)

    @property
    def fragmented_count(self):
        """How many of them are sent in fragments."""
        return sum(is_fragmented for _, _, is_fragmented in self.shapes)


class NodeServer:
    """`servers/ws.cjs`, running from entry to exit."""

    def __init__(self, deflate, _folder):
        self.deflate = deflate
        # Bound from the start, so that nobody gets the port meanwhile.
        self._socket = bound_socket()
        self.upstream = f"ws://127.0.0.1:{self._socket.getsockname()[1]}"

    async def __aenter__(self):
        self._seen = asyncio.Queue()
        descriptor = self._socket.fileno()
        arguments = [str(descriptor), "deflate" if self.deflate else "plain"]
        self.process = await start_node("servers/ws.cjs", *arguments, pass_fds=[descriptor])
        self._socket.close()
        # All the time, as a server whose output nobody reads would stop.
        self._reading = asyncio.create_task(self._read())
        assert await self.ended() == {"listening": True}
        return self

    async def __aexit__(self, *_exception):
        self.process.kill()
        await self.process.wait()
        await self._reading

    async def ended(self):
        """What the server saw of the connection that ended next."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._seen.get()

    async def _read(self):
        async for line in self.process.stdout:
            self._seen.put_nowait(json.loads(line))


class PythonServer:
    """A server of Python's websockets that does what `servers/ws.cjs` does, on a Unix socket."""

    def __init__(self, deflate, folder):
        self.deflate = deflate
        self.path = folder / "upstream.sock"
        self.upstream = f"ws+unix://{self.path}"

    async def __aenter__(self):
        self._seen = asyncio.Queue()
        self._server = await websockets.unix_serve(
            self._serve,
            str(self.path),
            compression="deflate" if self.deflate else None,
            max_size=None,
            process_request=self._judge,
            select_subprotocol=lambda _connection, offered: offered[-1] if offered else None,
        )
        return self

    async def __aexit__(self, *_exception):
        self._server.close()
        await self._server.wait_closed()

    async def ended(self):
        """What the server saw of the connection that ended next."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._seen.get()

    @staticmethod
    def _judge(_connection, request):
        _, action, *rest = request.path.split("/")
        if action != "refuse":
            return None
        fields = Headers({"WWW-Authenticate": CHALLENGE, "Content-Length": str(len(REFUSAL))})
        return Response(int(rest[0]), "Refused", fields, REFUSAL.encode())

    async def _serve(self, connection):
        url = urlsplit(connection.request.path)
        digest, count = hashlib.sha256(), 0
        if url.path == "/close":
            query = {key: value for key, [value] in parse_qs(url.query).items()}
            await close(connection, query.get("code"), query.get("reason"))
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in connection:
                add(digest, message)
                count += 1
                half = len(message) // 2
                await connection.send([message[:half], message[half:]] if count % 10 == 0 else message)
        received = {"count": count, "digest": digest.hexdigest()}
        self._seen.put_nowait({**described(connection), **received, **closed(connection)})


SERVERS = {"ws": NodeServer, "websockets": PythonServer}


async def talk_ws(talks):
    """Has `clients/ws_talk.cjs` open one connection after the other, and returns what came of each."""
    process = await start_node("clients/ws_talk.cjs")
    try:
        out, _ = await process.communicate(json.dumps(talks).encode())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


async def talk_websockets(talks):
    """Does with Python's websockets what `clients/ws_talk.cjs` does."""
    return [await talk(**one) for one in talks]


CLIENTS = {"ws": talk_ws, "websockets": talk_websockets}


async def talk(url, action, deflate=True, subprotocols=(), code=None, reason=None, **messages):
    options = {"compression": "deflate" if deflate else None, "subprotocols": list(subprotocols) or None}
    if action == "refused":
        try:
            await websockets.connect(url, **options)
        except websockets.InvalidStatus as refusal:
            response = refusal.response
            fields = {name.lower(): value for name, value in response.headers.raw_items()}
            return {"status": response.status_code, "fields": fields, "body": response.body.decode()}
        raise AssertionError(f"{url} is accepted")
    connection = await websockets.connect(url, max_size=None, **options)
    seen = described(connection)
    if action == "echo":
        seen |= await echo(connection, **messages)
    if action != "closed":
        await close(connection, code, reason)
    await connection.wait_closed()
    return {**seen, **closed(connection)}


async def echo(connection, file, messages):
    """Sends the messages of a file, a ping within each that is fragmented, and expects all of them back."""
    data = io.BytesIO(await asyncio.to_thread(Path(file).read_bytes))
    digest, sent, pongs = hashlib.sha256(), [], []
    for size, is_binary, is_fragmented in messages:
        message = data.read(size)
        sent.append((message if is_binary else message.decode(), is_fragmented))

    async def fragments(message):
        half = len(message) // 2
        yield message[:half]
        pongs.append(await connection.ping())
        yield message[half:]

    async def send():
        for message, is_fragmented in sent:
            add(digest, message)
            await connection.send(fragments(message) if is_fragmented else message)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        for count, (message, _) in enumerate(sent):
            assert await connection.recv() == message, f"another echo of message {count}"
        await asyncio.gather(*pongs)
    return {"count": len(sent), "pongs": len(pongs), "digest": digest.hexdigest()}


async def close(connection, code, reason):
    """Begins the closing handshake, without a code where none is given."""
    if code is None:
        async with connection.send_context():
            connection.protocol.send_close()
    else:
        await connection.close(int(code), reason or "")


def described(connection):
    """What was agreed on in the opening handshake."""
    extensions = connection.response.headers.get("Sec-WebSocket-Extensions", "")
    return {"subprotocol": connection.subprotocol or "", "extensions": extensions.partition(";")[0]}


def closed(connection):
    """The Close that came from the other end."""
    received = connection.protocol.close_rcvd
    return {"code": received.code, "reason": received.reason} if received else {"code": 1006, "reason": ""}


def add(digest, message):
    """Adds a message, its type and its size to what is known of all that came before it."""
    is_binary = isinstance(message, bytes)
    data = message if is_binary else message.encode()
    digest.update(f"{'binary' if is_binary else 'text'} {len(data)} ".encode())
    digest.update(data)


async def start_node(program, *arguments, pass_fds=()):
    """Starts a program of Node that ends with the tests."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", "node", str(HERE / program), *arguments]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, pass_fds=pass_fds)


def bound_socket():
    """A socket on a port of its own, on which nothing listens yet."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound
