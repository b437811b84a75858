"""`service = "http"`: requests passed to a web server over connections that are kept, and responses passed back."""

import asyncio
import contextlib
import os
import re
import socket
import threading
import time

import pytest

import smuggling
from client import ANSWER_S, Connection, upgrade
from harness import PATIENCE_S, Gateway
from upstream import CONFIG, Upstream, accepted, connects, ends, relay, route, server_frame, settle, until

GIB = 1 << 30


class Web(Upstream):
    """A web server of the test's, which keeps every request that it gets: its line, its fields, its body."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.url = self.url.replace("ws", "http", 1)
        self.requests = []

    def answering(self, answer):
        """Answers each request with what a function of it says, bytes or an async generator of them.

        The connection stays open but where the head says `connection: close`.
        """

        async def serve(peer):
            while True:
                request = await read_request(peer)
                self.requests.append(request)
                given = answer(request)
                parts = [given] if isinstance(given, bytes) else [part async for part in given(peer)]
                for part in parts:
                    await peer.send(part)
                if b"connection: close" in b"".join(parts).lower() or not parts:
                    return

        return self.serving(serve)


async def read_request(peer):
    """Reads one request: its line, its fields in lower case, its body and the trailers behind that."""
    line, fields = await peer.head()
    fields = [(name.lower(), value) for name, value in fields]
    known = dict(fields)
    body, trailers = b"", []
    if known.get("transfer-encoding") == "chunked":
        body, trailers = await chunks(peer.reader)
    elif size := int(known.get("content-length", 0)):
        body = await peer.reader.readexactly(size)
    return line, fields, body, trailers


async def chunks(reader):
    """Reads a body in chunks, and its trailers."""
    body, trailers = b"", []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        trailers.append(line.decode().strip().lower())
    return body, trailers


def ok(content=b"fine", lines=""):
    """A response of known size."""
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\n{lines}\r\n".encode() + content


def get(path="/chat/a", lines=""):
    """A request without a body."""
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n".encode()


def post(body, path="/chat/a", lines=""):
    """A request with a body of known size."""
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


def http_route(*upstreams, keys="", **limits):
    """A route that passes HTTP. What is kept to its upstreams is let go soon, so that a test can see all of it end."""
    return route(*upstreams, service="http", keys=keys, **{"idle_connection_timeout_ms": 300} | limits)


def paths(web):
    """What the web server was asked for."""
    return [line.split(" ")[1] for line, *_ in web.requests]


async def response(client):
    """One answer, whose body may come in chunks."""
    async with asyncio.timeout(ANSWER_S):
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head[:-4].split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if fields.get("transfer-encoding") == "chunked":
            body, trailers = await chunks(client.reader)
        else:
            body, trailers = await client.reader.readexactly(int(fields.get("content-length", 0))), []
    return int(status.split(" ")[1]), fields, body, trailers


def test_connections_are_kept_on_both_sides(io_driver):
    async def scenario(gateway):
        with web:
            async with web.answering(lambda request: ok(request[0].encode())):
                async with await Connection.open(gateway.ports["a"]) as client:
                    for index in range(20):
                        await client.send(get(f"/chat/{index}?a=b"))
                        status, fields, body, _ = await response(client)
                        assert (status, body) == (200, f"GET /chat/{index}?a=b HTTP/1.1".encode())
                        assert "connection" not in fields
                assert web.count == 1
                clients = [await Connection.open(gateway.ports["a"]) for _ in range(8)]
                for client in clients:
                    await client.send(get())
                for client in clients:
                    assert (await response(client))[0] == 200
                assert web.count <= 8
                for client in clients:
                    await client.__aexit__()

    web = Web()
    metrics = relay(io_driver, http_route(web), scenario)
    assert ends(metrics) == {"http_done": 9}
    assert metrics.value("http_requests_total", port="a", route="chat", **{"class": "2xx"}) == 28
    assert connects(metrics)["opened"] == web.count


def test_requests_in_one_segment_are_answered_in_their_order(io_driver):
    async def scenario(gateway):
        with web:
            async with (
                web.answering(lambda request: ok(request[0].encode() + request[2])),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                await client.send(get("/chat/1") + post(b"body", "/chat/2") + get("/chat/3") + get("/chat/4"))
                for expected in [b"/chat/1", b"/chat/2", b"/chat/3", b"/chat/4"]:
                    assert expected in (await response(client))[2]
                # Byte by byte, whatever the parser holds already.
                for byte in post(b"slow", "/chat/5"):
                    await client.send(bytes([byte]))
                assert (await response(client))[2].endswith(b"HTTP/1.1slow")

    web = Web()
    relay(io_driver, http_route(web), scenario)
    assert paths(web) == [f"/chat/{index}" for index in range(1, 6)]


def test_bodies_pass_whole_in_every_framing(io_driver):
    big = os.urandom(3 << 20)

    def answer(request):
        line, _fields, body, trailers = request
        path = line.split(" ")[1]
        if path.endswith("/chunked"):
            sizes = [1, 10, 65_536, len(body)]
            parts, at = b"", 0
            for size in sizes:
                if part := body[at : at + size]:
                    parts += f"{len(part):x}\r\n".encode() + part + b"\r\n"
                at += size
            return (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
                + parts
                + (b"0\r\nx-sum: 7\r\n\r\n")
            )
        if path.endswith("/until-end"):
            return b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body
        if path.endswith("/204"):
            return b"HTTP/1.1 204 No\r\n\r\n"
        if path.endswith("/304"):
            return b'HTTP/1.1 304 No\r\netag: "a"\r\n\r\n'
        if line.startswith("HEAD"):
            return b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n"
        return ok(body, f"x-trailers: {trailers}\r\n")

    async def scenario(gateway):
        with web:
            async with (
                web.answering(answer),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                for body in [b"", b"x", big]:
                    for path in ["/chat/size", "/chat/chunked", "/chat/until-end"]:
                        client.writer.write(post(body, path, "te: trailers\r\n"))
                        status, fields, found, trailers = await response(client)
                        assert (status, found == body) == (200, True), path
                        assert trailers == (["x-sum: 7"] if path == "/chat/chunked" else []), path
                chunked = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in [b"a", b"bc", big])
                client.writer.write(
                    b"POST /chat/size HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
                    b"trailer: x-end\r\nte: trailers\r\n\r\n" + chunked + b"0\r\nx-end: yes\r\n\r\n"
                )
                status, fields, found, _ = await response(client)
                assert (status, found == b"abc" + big) == (200, True)
                assert fields["x-trailers"] == "['x-end: yes']"
                for path, status in [("/chat/204", 204), ("/chat/304", 304)]:
                    await client.send(get(path))
                    assert (await response(client))[0] == status
                await client.send(get("/chat/head").replace(b"GET", b"HEAD"))
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert b"content-length: 12345" in head.lower()
                await client.send(get("/chat/last"))
                assert (await response(client))[0] == 200

    web = Web()
    relay(io_driver, http_route(web), scenario)


def test_http10_gets_an_answer_that_ends_with_its_connection(io_driver):
    async def scenario(gateway):
        with web:
            async with (
                web.answering(lambda _: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n"),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                await client.send(b"GET /chat/a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
                async with asyncio.timeout(ANSWER_S):
                    answer = await client.reader.read()
                assert answer.endswith(b"\r\n\r\nfine") and b"chunked" not in answer

    web = Web()
    relay(io_driver, http_route(web), scenario)


def test_expectations_are_met_here(io_driver):
    async def scenario(gateway):
        with web:
            async with web.answering(lambda request: ok(request[2])):
                async with await Connection.open(gateway.ports["a"]) as client:
                    head, body = post(b"waited", lines="expect: 100-continue\r\n").split(b"\r\n\r\n")
                    await client.send(head + b"\r\n\r\n")
                    async with asyncio.timeout(ANSWER_S):
                        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                    await client.send(body)
                    assert (await response(client))[2] == b"waited"
                # Where the upstream is not asked the client is not told to go on.
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.send(
                        b"POST /chat/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1001\r\n"
                        b"expect: 100-continue\r\n\r\n"
                    )
                    status, fields, *_ = await response(client)
                    assert (status, fields["connection"]) == (413, "close")
                    await client.end()
        assert [dict(fields).get("expect") for _, fields, *_ in web.requests] == [None]

    web = Web()
    limits = "limits = { request_body_size_max = 1000 }"
    relay(io_driver, http_route(web, keys=limits), scenario)


def test_a_body_beyond_the_limit_is_refused(io_driver):
    async def scenario(gateway):
        with web:
            async with web.answering(lambda request: ok(request[2])):
                for head, status in [
                    (post(b"x" * 1000), 200),
                    (post(b"x" * 1001), 413),
                    (chunked(b"x" * 1000), 200),
                    (chunked(b"x" * 1001), 413),
                    (chunked(b"x" * 600, b"y" * 600), 413),
                ]:
                    async with await Connection.open(gateway.ports["a"]) as client:
                        await client.send(head)
                        found, fields, *_ = await response(client)
                        assert found == status, head[-20:]
                        # Where all of the body has come nevertheless, the connection is good for more.
                        if fields.get("connection") == "close":
                            await client.end()
                        else:
                            await client.send(get())
                            assert (await response(client))[0] == 200

    def chunked(*parts):
        body = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)
        head = b"POST /chat/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + body + b"0\r\n\r\n"

    web = Web()
    metrics = relay(io_driver, http_route(web, keys="limits = { request_body_size_max = 1000 }"), scenario)
    assert metrics.value("http_requests_total", port="a", route="chat", **{"class": "4xx"}) == 3


def test_silence_has_a_deadline_on_both_sides(io_driver):
    async def silent(_peer):
        await asyncio.sleep(ANSWER_S)
        yield b""

    async def begun(peer):
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await asyncio.sleep(ANSWER_S)
        yield b""

    async def scenario(gateway):
        with web:
            async with web.answering(lambda request: {"/chat/silent": silent, "/chat/begun": begun}[path(request)]):
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.send(get("/chat/silent"))
                    assert (await response(client))[0] == 504
                    # The connection is good for more.
                    await client.send(get("/chat/begun"))
                    with pytest.raises(asyncio.IncompleteReadError):
                        await response(client)
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.send(post(b"1234567890", "/chat/silent")[:-5])
                    assert (await response(client))[0] == 408
                    await client.end()

    def path(request):
        return request[0].split(" ")[1]

    web = Web()
    keys = "limits = { body_timeout_ms = 300 }"
    metrics = relay(io_driver, http_route(web, keys=keys, response_timeout_ms=1000), scenario)
    assert ends(metrics) == {"upstream_gone": 1, "http_done": 1}


CUT = {
    "before the head": b"",
    "within the head": b"HTTP/1.1 200 O",
    "a size": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "within a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf",
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("name", CUT)
def test_an_answer_that_is_cut_short_is_not_taken_for_a_whole_one(io_driver, name, version):
    async def cut(peer):
        await peer.send(CUT[name])
        peer.reset() if name == "before the head" else peer.writer.close()
        return
        yield

    async def scenario(gateway):
        with web:
            async with web.answering(lambda _: cut), await Connection.open(gateway.ports["a"]) as client:
                await client.send(post(b"x").replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
                if "head" in name:
                    assert (await response(client))[0] == 502
                    return
                # Chunks end with the connection for HTTP/1.0, so that only a reset tells.
                with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                    async with asyncio.timeout(ANSWER_S):
                        if version == "1.0" and "chunk" in name:
                            await client.reader.read()
                        else:
                            await response(client)
                assert len(web.requests) == 1, "a POST is never sent twice"

    web = Web()
    relay(io_driver, http_route(web), scenario)


def test_a_kept_connection_that_its_upstream_ends_loses_no_request(io_driver):
    async def scenario(gateway):
        with web:
            async with (
                web.answering(answer),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                for index in range(100):
                    await client.send(get(f"/chat/{index}"))
                    assert (await response(client))[0] == 200, index
                # The upstream reads a request on a kept connection, and ends it without a word.
                await client.send(get("/chat/drop"))
                assert (await response(client))[0] == 200
                await client.send(get("/chat/ready"))
                await response(client)
                await client.send(post(b"once", "/chat/drop-post"))
                assert (await response(client))[0] == 502
                assert paths(web).count("/chat/drop-post") == 1
                assert paths(web).count("/chat/drop") == 2

    dropped = set()

    async def nothing(_peer):
        return
        yield

    def answer(request):
        path = request[0].split(" ")[1]
        if "drop" in path and path not in dropped:
            dropped.add(path)
            return nothing
        # Every third answer is the last one on its connection, with a word or without.
        return ok(lines="connection: close\r\n" if len(web.requests) % 3 == 0 else "")

    web = Web()
    relay(io_driver, http_route(web), scenario)


def test_who_leaves_takes_the_upstreams_connection_along(io_driver):
    ended = []

    async def endless(peer):
        with contextlib.suppress(ConnectionError):
            await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while True:
                await peer.send(b"4\r\nmore\r\n")
                await asyncio.sleep(0.01)
        ended.append(peer)
        return
        yield

    async def waiting(peer):
        await peer.gone()
        ended.append(peer)
        return
        yield

    async def scenario(gateway):
        with web:
            async with web.answering(lambda request: endless if "endless" in request[0] else waiting):
                for path, reset in [("endless", False), ("endless", True), ("wait", False), ("wait", True)]:
                    before = len(ended)
                    client = await Connection.open(gateway.ports["a"])
                    await client.send(get(f"/chat/{path}"))
                    if path == "endless":
                        await client.reader.readuntil(b"more")
                    else:
                        await settle(gateway)
                    if reset:
                        client.reset()
                    else:
                        client.writer.close()
                    await until(lambda before=before: left(before), "the upstream's connection is ended")

    async def left(before):
        return len(ended) > before

    web = Web()
    metrics = relay(io_driver, http_route(web), scenario)
    assert ends(metrics) == {"client_gone": 4}


def test_a_client_that_does_not_read_is_cut_and_stops_its_upstream(io_driver):
    sent = 0

    async def endless(peer):
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
            while True:
                await peer.send(b"x" * 65_536)
                sent += 65_536
        return
        yield

    async def scenario(gateway):
        with web:
            async with web.answering(lambda _: endless):
                before = gateway.resident_size()
                client = await Connection.open(gateway.ports["a"], receive_buffer_size=4096)
                client.writer.transport.pause_reading()
                await client.send(get())

                async def is_cut():
                    return gateway.metrics().by("end", "connections_ended_total", port="a")

                await until(is_cut, "the client is cut")
                assert gateway.resident_size() - before < 2 << 20
                client.writer.transport.abort()

    web = Web()
    metrics = relay(io_driver, http_route(web), scenario)
    assert ends(metrics) == {"slow_client": 1}
    assert sent < 64 << 20


# What two servers could read differently, as requests of an `http` route; `smuggled` must never be asked for.
SMUGGLED = b"GET /chat/smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = "POST /chat/a HTTP/1.1\r\nhost: localhost\r\n"
FRAMINGS = {
    "CL.TE": (f"{POST}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".encode() + b"G", 400),
    "TE.CL": (f"{POST}transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n8\r\n".encode() + SMUGGLED, 400),
    "TE.TE": (f"{POST}transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n".encode(), 400),
    "TE, folded": (f"{POST}transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n".encode(), 400),
    "TE, xchunked": (f"{POST}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n".encode(), 400),
    "TE, a list": (f"{POST}transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n".encode(), 501),
    "TE, twice chunked": (f"{POST}transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n".encode(), 400),
    "TE, quoted": (f'{POST}transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n'.encode(), 400),
    "TE, a vertical tab": (f"{POST}transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n".encode(), 400),
    "TE, a space before the colon": (f"{POST}transfer-encoding : chunked\r\n\r\n0\r\n\r\n".encode(), 400),
    "TE in HTTP/1.0": (
        f"{POST}transfer-encoding: chunked\r\n\r\n0\r\n\r\n".replace("HTTP/1.1", "HTTP/1.0").encode(),
        400,
    ),
    "CL, twice": (f"{POST}content-length: 0\r\ncontent-length: 50\r\n\r\n".encode() + SMUGGLED, 400),
    "CL, twice the same": (f"{POST}content-length: 1\r\ncontent-length: 1\r\n\r\nx".encode(), 400),
    "CL, a list": (f"{POST}content-length: 1, 1\r\n\r\nx".encode(), 400),
    "CL, a sign": (f"{POST}content-length: +1\r\n\r\nx".encode(), 400),
    "CL, negative": (f"{POST}content-length: -1\r\n\r\nx".encode(), 400),
    "CL, hexadecimal": (f"{POST}content-length: 0x1\r\n\r\nx".encode(), 400),
    "CL, beyond 64 bits": (f"{POST}content-length: 18446744073709551617\r\n\r\nx".encode(), 400),
    "CL, an inner space": (f"{POST}content-length: 1 0\r\n\r\nx".encode(), 400),
    "a bare LF": (f"{POST}content-length: 1\n\r\n\r\nx".encode(), 400),
    "a bare CR": (f"{POST}x: y\rcontent-length: 1\r\n\r\nx".encode(), 400),
    "a NUL": (f"{POST}x: \0\r\n\r\n".encode(), 400),
    "two hosts": (f"{POST}host: other\r\n\r\n".encode(), 400),
    "a chunk's size with 0x": ("0x1\r\na\r\n0\r\n\r\n", 400),
    "a chunk's size with a sign": ("+1\r\na\r\n0\r\n\r\n", 400),
    "a chunk's size with an underscore": ("1_0\r\n0123456789abcdef\r\n0\r\n\r\n", 400),
    "a chunk's size with a space before": (" 1\r\na\r\n0\r\n\r\n", 400),
    "a chunk's size that is none": ("g\r\na\r\n0\r\n\r\n", 400),
    "a chunk's size that is missing": ("\r\na\r\n0\r\n\r\n", 400),
    "a chunk's size beyond 64 bits": ("10000000000000001\r\na\r\n0\r\n\r\n", 400),
    "a chunk whose line ends in LF": ("1\na\r\n0\r\n\r\n", 400),
    "a chunk whose extension ends in LF": ("1;x\na\r\n0\r\n\r\n", 400),
    "a chunk whose extension holds a CR": ("1;x\ry\r\na\r\n0\r\n\r\n", 400),
    "a chunk whose data goes on": ("1\r\nab\r\n0\r\n\r\n", 400),
    "a chunk whose data ends in LF": ("1\r\na\n0\r\n\r\n", 400),
    "a last chunk without its line": ("0\r\nGET /chat/smuggled HTTP/1.1\r\n", 0),
    "chunks with extensions": ('1;a=b;c="d e"\r\na\r\n0;x\r\n\r\n', 200),
    "leading zeros": ("0001\r\na\r\n000\r\n\r\n", 200),
}


@pytest.mark.parametrize("is_second", [False, True], ids=["first", "second"])
def test_of_one_request_one_arrives_or_none(io_driver, is_second):
    async def scenario(gateway):
        with web:
            async with web.answering(lambda request: ok(request[2])):
                for name, (sent, expected) in FRAMINGS.items():
                    web.requests.clear()
                    if isinstance(sent, str):
                        sent = f"{POST}transfer-encoding: chunked\r\n\r\n{sent}".encode()
                    async with await Connection.open(gateway.ports["a"]) as client:
                        if is_second:
                            await client.send(get("/chat/before"))
                            assert (await response(client))[0] == 200
                        await client.send(sent)
                        if expected == 0:
                            client.finish_sending()
                            async with asyncio.timeout(ANSWER_S):
                                await client.reader.read()
                        else:
                            assert (await response(client))[0] == expected, name
                        if expected == 200:
                            await client.send(get("/chat/after"))
                            assert (await response(client))[0] == 200, name
                        elif expected:
                            await client.gone()
                    asked = [path for path in paths(web) if path not in ("/chat/before", "/chat/after")]
                    assert len(asked) <= 1 and "/chat/smuggled" not in asked, (name, asked)
                    if expected == 200:
                        assert asked == ["/chat/a"], name

    web = Web()
    relay(io_driver, http_route(web), scenario)


def test_a_hostile_handshake_is_answered_alike_as_first_and_as_second_request(io_driver):
    async def scenario(gateway):
        with web:
            async with web.answering(lambda request: ok()):
                for name, (head, expected) in smuggling.BAD_REQUESTS.items():
                    found = []
                    for is_second in [False, True]:
                        web.requests.clear()
                        async with await Connection.open(gateway.ports["a"]) as client:
                            if is_second:
                                await client.send(get("/chat/before"))
                                assert (await response(client))[0] == 200
                            await client.send(head)
                            found.append((await response(client))[0])
                        asked = [path for path in paths(web) if path != "/chat/before"]
                        assert len(asked) == (1 if found[-1] == 200 else 0), (name, asked)
                    # Where no WebSocket is asked for, by the rules, it is a request like any other.
                    wanted = 200 if expected == 426 and name != "version 12" else expected
                    if found != [wanted, wanted]:
                        faults.append((name, found, wanted))

    faults = []
    web = Web()
    relay(io_driver, http_route(web, keys="websocket = true"), scenario)
    assert not faults


@pytest.mark.parametrize("websocket", ["true", "false"])
def test_an_upgrade_on_a_kept_connection_passes_where_the_route_takes_it(io_driver, websocket):
    async def serve(peer):
        while True:
            _line, fields, *_ = request = await read_request(peer)
            web.requests.append(request)
            if dict(fields).get("upgrade") != "websocket":
                await peer.send(ok())
                continue
            await peer.send(accepted(fields))
            received = await peer.frame()
            await peer.send(server_frame(received.opcode, received.payload))
            await peer.gone()
            return

    async def scenario(gateway):
        with web:
            async with (
                web.serving(serve),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                for _ in range(3):
                    await client.send(get())
                    assert (await response(client))[0] == 200
                await client.send(upgrade("/chat/ws"))
                if websocket == "false":
                    assert (await response(client))[0] == 200
                    assert "upgrade" not in dict(web.requests[-1][1])
                    return
                assert (await client.response()).status == 101
                await client.echo(b"hello")
                client.writer.close()
                await settle(gateway)
                async with await Connection.open(gateway.ports["a"]) as foreign:
                    await foreign.send(get())
                    assert (await response(foreign))[0] == 200
                    before = len(web.requests)
                    await foreign.refused(upgrade("/chat/ws", origin="https://evil.example"), 403)
                    assert len(web.requests) == before

    web = Web()
    relay(io_driver, http_route(web, keys=f"websocket = {websocket}"), scenario)


def test_an_echo_and_a_web_server_share_a_connection(io_driver):
    async def scenario(gateway):
        with web:
            async with (
                web.answering(lambda _: ok()),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                await client.send(get())
                assert (await response(client))[0] == 200
                await client.accepted(upgrade("/own"))
                await client.echo(b"x" * 1000)
                assert await client.close() == []

    web = Web()
    own = '[[route]]\npath = "/own"\nservice = "echo"\nports = ["a"]\n'
    metrics = relay(io_driver, http_route(web) + own, scenario)
    assert ends(metrics) == {"closed": 1}


# Responses that would reach the next client, too, if they were believed.
RESPONSES = {
    "more than its size": ok() + ok(b"poison"),
    "chunks and a size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n"
    b"4\r\nfine\r\n0\r\n\r\n",
    "two sizes": b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nfine",
    "a negative size": b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\nfine",
    "a 101 that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nfine",
    "no head": b"fine",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 30_000,
    "a folded field": b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\ncontent-length: 4\r\n\r\nfine",
}


@pytest.mark.parametrize("name", RESPONSES)
def test_what_an_upstream_says_beyond_a_response_reaches_nobody(io_driver, name):
    async def scenario(gateway):
        with web:
            async with (
                web.answering(lambda request: RESPONSES[name] if "bad" in request[0] else ok(b"good")),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                await client.send(get("/chat/bad"))
                status, _, body, _ = await response(client)
                assert (status, body) == (200, b"fine") or status == 502, (status, body)
                for _ in range(3):
                    await client.send(get("/chat/good"))
                    assert (await response(client))[::2] == (200, b"good")

    web = Web()
    relay(io_driver, http_route(web), scenario)


def test_fields_of_one_connection_stay_there_and_others_are_edited(io_driver):
    async def scenario(gateway):
        with web:
            async with (
                web.answering(
                    lambda _: ok(
                        lines="connection: x-hop\r\nx-hop: a\r\nkeep-alive: timeout=5\r\nserver: b\r\n"
                        "set-cookie: c=d\r\nset-cookie: e=f\r\n"
                    )
                ),
                await Connection.open(gateway.ports["a"]) as client,
            ):
                await client.send(
                    get(
                        "/chat/a?b=%20c",
                        "connection: keep-alive, x-hop, upgrade\r\nx-hop: a\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"
                        "proxy-authorization: b\r\ncookie: c\r\nx-forwarded-for: 192.0.2.1\r\nx-debug: e\r\n",
                    )
                )
                await client.send(b"")
                head = (await client.reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert "x-hop" not in head and "keep-alive" not in head and "server" not in head
                assert head.count("set-cookie: ") == 2 and "x-env: prod\r\n" in head
        ((line, fields, *_),) = web.requests
        assert line == "GET /v2/a?b=%20c HTTP/1.1"
        fields = dict(fields)
        for name in ["connection", "x-hop", "upgrade", "proxy-authorization", "x-debug", "keep-alive"]:
            assert name not in fields, name
        assert fields["cookie"] == "c" and fields["x-team"] == "edge"
        assert fields["x-forwarded-for"] == "127.0.0.1" and fields["x-forwarded-host"] == "localhost"
        assert re.fullmatch("[0-9a-f]{32}", fields["x-request-id"])

    web = Web()
    keys = """
upstream_path = "/v2/*"
request_headers = { remove = ["X-Debug"], set = { X-Team = "edge" } }
response_headers = { remove = ["Server"], set = { X-Env = "prod" } }
"""
    relay(io_driver, http_route(web, keys=keys), scenario)


def test_a_drain_lets_a_response_come_to_its_end(io_driver):
    release = asyncio.Event()

    async def slow(peer):
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await release.wait()
        yield b"4\r\nmore\r\n0\r\n\r\n"

    async def scenario():
        with web:
            async with (
                web.answering(lambda request: slow if "slow" in request[0] else ok()),
                await Connection.open(gateway.ports["a"]) as idle,
                await Connection.open(gateway.ports["a"]) as client,
            ):
                await idle.send(get())
                await response(idle)
                await client.send(get("/chat/slow"))
                await client.reader.readuntil(b"half\r\n")
                gateway.signal(15)
                await idle.end()
                release.set()
                async with asyncio.timeout(ANSWER_S):
                    assert await client.reader.read() == b"4\r\nmore\r\n0\r\n\r\n"

    web = Web()
    with Gateway(CONFIG + http_route(web), io_driver=io_driver) as gateway:
        asyncio.run(scenario())
        assert gateway.process.wait(PATIENCE_S) == 0


class Mill(threading.Thread):
    """A web server with a thread for each connection: it swallows a body, or sends one of `size` bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=[self.listener.accept()[0]], daemon=True).start()

    def serve(self, connection):
        buffer = memoryview(bytearray(1 << 20))
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while head := read_head(connection):
                size = int(re.search(rb"content-length: (\d+)", head.lower() + b"content-length: 0")[1])
                left = size
                while left:
                    left -= connection.recv_into(buffer, min(left, len(buffer)))
                wanted = int(re.search(rb"size=(\d+)", head + b"size=2")[1])
                connection.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {wanted}\r\n\r\n".encode())
                while wanted:
                    part = min(wanted, len(buffer))
                    connection.sendall(buffer[:part])
                    wanted -= part


def read_head(connection):
    """Reads up to the empty line, and nothing behind it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        peeked = connection.recv(65_536, socket.MSG_PEEK)
        if not peeked:
            return b""
        joined = head + peeked
        end = joined.find(b"\r\n\r\n")
        take = len(peeked) if end < 0 else end + 4 - len(head)
        head += connection.recv(take)
    return head


@pytest.fixture
def mill():
    """The server of bulk."""
    mill = Mill()
    mill.start()
    yield mill
    mill.listener.close()


def test_a_gibibyte_passes_each_way_without_memory(io_driver, mill):
    buffer = memoryview(bytearray(1 << 20))
    keys = 'limits = { request_body_size_max = "1GiB" }'
    with Gateway(CONFIG + http_route(mill.url, keys=keys), io_driver=io_driver) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.ports["a"]), timeout=PATIENCE_S) as client:
            client.sendall(get("/chat/warm?size=1000000"))
            read_body(client, 1_000_000, buffer)
            before, most = gateway.resident_size(), 0
            client.sendall(f"{POST}content-length: {GIB}\r\n\r\n".encode())
            for index in range(GIB // len(buffer)):
                client.sendall(buffer)
                if index % 128 == 0:
                    most = max(most, gateway.resident_size())
            read_body(client, 2, buffer)
            client.sendall(get(f"/chat/a?size={GIB}"))
            most = max(most, read_body(client, GIB, buffer, gateway.resident_size))
        print(f"resident {before >> 10} KiB before, {most >> 10} KiB at most")
        assert most - before < 4 << 20
        metrics = gateway.at_rest()
        assert metrics.value("wire_bytes_total", port="a", direction="received") > GIB
        assert metrics.value("wire_bytes_total", port="a", direction="sent") > GIB


def read_body(client, size, buffer, measure=lambda: 0):
    """Reads a response of this size; returns the most that was measured meanwhile."""
    head, most, step = read_head(client), 0, 0
    assert head.startswith(b"HTTP/1.1 200 "), head
    while size:
        read = client.recv_into(buffer, min(size, len(buffer)))
        assert read, f"{size} bytes are missing"
        size -= read
        step += 1
        if step % 1024 == 0:
            most = max(most, measure())
    return most


def test_a_thousand_requests_a_second_leave_nothing(io_driver, mill):
    """Twelve seconds of them, a minute where HTTP_LOAD_S says so, half of them on connections of their own."""
    lasts_s = float(os.environ.get("HTTP_LOAD_S", "12"))
    counts, faults = [], []

    def load(port, end):
        count = 0
        try:
            kept = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            began = time.monotonic()
            with kept:
                while (now := time.monotonic()) < end:
                    # Four threads, 260 a second each.
                    if count > (now - began) * 260:
                        time.sleep(0.001)
                        continue
                    kept.sendall(get("/chat/a?size=1000"))
                    read_body(kept, 1000, bytearray(1000))
                    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as once:
                        once.sendall(post(b"x" * 500, lines="connection: close\r\n"))
                        read_body(once, 2, bytearray(2))
                    count += 2
        except (OSError, AssertionError) as fault:
            faults.append(fault)
        counts.append(count)

    with Gateway(CONFIG + http_route(mill.url), io_driver=io_driver) as gateway:
        load(gateway.ports["a"], time.monotonic() + 1)
        before, descriptors = gateway.resident_size(), gateway.descriptor_count()
        counts.clear()
        end = time.monotonic() + lasts_s
        threads = [threading.Thread(target=load, args=[gateway.ports["a"], end]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        per_s = sum(counts) / lasts_s
        after = gateway.resident_size()
        print(f"{per_s:.0f} requests a second, resident {before >> 10} KiB before and {after >> 10} KiB after")
        assert per_s > 1000
        assert after - before < 1 << 20
        metrics = gateway.at_rest()
        requests = metrics.value("http_requests_total", port="a", route="chat", **{"class": "2xx"})
        assert requests >= sum(counts)
        # Those that are kept to the upstream are let go by and by.
        asyncio.run(until(lambda: few(gateway, descriptors), "descriptors are back"))


async def few(gateway, descriptors):
    """Whether no more descriptors are open than before."""
    return gateway.descriptor_count() <= descriptors
