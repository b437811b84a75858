"""What passes between a client and an upstream before they are connected: one head, one answer, and nothing else."""

import asyncio
import contextlib
import re

import pytest

from client import ACCEPT, BINARY, CLOSE, KEY, TEXT, Connection, Frame, close_frame, frame, upgrade
from upstream import (
    ACCEPTED,
    CONFIG,
    SWITCHING,
    Upstream,
    connects,
    ends,
    handshakes,
    relay,
    route,
    server_frame,
    settle,
)

HEAD = upgrade("/chat/room").decode()


def replaced(old, new):
    """The head of an opening handshake in which something else stands."""
    assert old in HEAD
    return HEAD.replace(old, new, 1).encode()


def added(lines):
    """The head of an opening handshake with further lines before its end."""
    return replaced("\r\n\r\n", f"\r\n{lines}\r\n\r\n")


# What could be read in two ways, or is no opening handshake, with the status that answers it.
BAD_REQUESTS = {
    "two framings": (added("content-length: 5\r\ntransfer-encoding: chunked"), 400),
    "two framings, the other way round": (added("transfer-encoding: chunked\r\ncontent-length: 0"), 400),
    "a body by size": (added("content-length: 5") + b"GET /", 400),
    "a body in chunks": (added("transfer-encoding: chunked") + b"0\r\n\r\n", 400),
    "an unknown transfer coding": (added("transfer-encoding: xchunked"), 400),
    "a coding behind chunked": (added("transfer-encoding: chunked, gzip"), 400),
    "two sizes": (added("content-length: 0\r\ncontent-length: 0"), 400),
    "a list of sizes": (added("content-length: 0, 0"), 400),
    "a size with a sign": (added("content-length: +0"), 400),
    "a bare LF behind the request line": (replaced("HTTP/1.1\r\n", "HTTP/1.1\n"), 400),
    "a bare LF behind a field": (added("x: y\nz: w"), 400),
    "a bare LF at the end": (replaced("\r\n\r\n", "\r\n\n"), 400),
    "a bare CR": (added("x: y\rz: w"), 400),
    "a folded field": (added("x: y\r\n z"), 400),
    "a folded first field": (replaced("HTTP/1.1\r\n", "HTTP/1.1\r\n x: y\r\n"), 400),
    "a space before a colon": (added("transfer-encoding : chunked"), 400),
    "a tab before a colon": (added("content-length\t: 5"), 400),
    "no name": (added(": y"), 400),
    "a NUL": (added("x: y\0z"), 400),
    "two hosts": (added("host: localhost"), 400),
    "no host": (replaced("host: localhost\r\n", ""), 400),
    "a host that is none": (replaced("host: localhost", "host: local host"), 400),
    "a list of hosts": (replaced("host: localhost", "host: localhost, other"), 400),
    "userinfo": (replaced("GET /chat/room", "GET http://user@localhost/chat/room"), 400),
    "two spaces": (replaced("GET /chat/room", "GET  /chat/room"), 400),
    "two keys": (added(f"sec-websocket-key: {KEY}"), 400),
    "no key": (replaced(f"sec-websocket-key: {KEY}\r\n", ""), 400),
    "a short key": (replaced(KEY, "c2hvcnQ="), 400),
    "two versions": (added("sec-websocket-version: 13"), 400),
    "version 12": (replaced("version: 13", "version: 12"), 426),
    "no upgrade in connection": (replaced("connection: Upgrade", "connection: keep-alive"), 400),
    "no upgrade": (replaced("upgrade: websocket\r\n", ""), 426),
    "another upgrade": (replaced("upgrade: websocket", "upgrade: h2c"), 426),
    "POST": (replaced("GET ", "POST "), 405),
    "CONNECT": (replaced("GET /chat/room", "CONNECT localhost:80"), 400),
    "HTTP/1.0": (replaced("HTTP/1.1", "HTTP/1.0"), 426),
    "HTTP/2.0": (replaced("HTTP/1.1", "HTTP/2.0"), 505),
    "dot segments": (replaced("/chat/room", "/chat/../admin"), 404),
    "escaped dot segments": (replaced("/chat/room", "/chat/%2e%2e/admin"), 404),
    "an escaped slash": (replaced("/chat/room", "/chat/a%2fb"), 404),
    "an escaped control byte": (replaced("/chat/room", "/chat/a%0d%0ab"), 404),
    "a backslash": (replaced("/chat/room", "/chat/a\\..\\b"), 404),
    "another path": (replaced("/chat/room", "/chats"), 404),
    "a foreign page": (added("origin: https://evil.example"), 403),
    "too many options": (replaced("connection: Upgrade", f"connection: Upgrade{', x' * 17}"), 400),
    "a PROXY header": (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 80\r\n" + HEAD.encode(), 400),
    "a PROXY header of version 2": (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12) + HEAD.encode(), 400),
}


def test_what_can_be_read_in_two_ways_reaches_no_upstream(io_driver):
    with Upstream() as upstream:

        async def scenario(gateway):
            for name, (head, status) in BAD_REQUESTS.items():
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.send(head + frame(TEXT, b"behind the head"))
                    response = await client.response()
                    assert response.status == status, f"{name}: {response}"
                    await client.end()
            assert not await upstream.is_asked()

        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {}
    assert ends(metrics) == {"refused": len(BAD_REQUESTS)}
    assert sum(handshakes(metrics).values()) == len(BAD_REQUESTS)


RANDOM_LINES = re.compile(rb"(?<=X-Request-Id: )[0-9a-f]{32}|(?<=traceparent: 00-)[0-9a-f]{32}-[0-9a-f]{16}-00")


def test_before_the_101_an_upstream_hears_one_head_and_nothing_else(io_driver):
    """Frames that come with the head and after it are held, and passed on as they came behind the 101."""
    first, second = frame(TEXT, b"with the head"), frame(BINARY, b"after it", mask=b"\x01\x02\x03\x04")

    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.send(added("content-length: 0\r\ncookie: a=b") + first)
            async with await upstream.take() as peer:
                await peer.head()
                await client.send(second)
                await settle(gateway)
                head = peer.received
                assert RANDOM_LINES.sub(b"random", head) == (
                    b"GET /chat/room HTTP/1.1\r\n"
                    b"Host: localhost\r\n"
                    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                    b"sec-websocket-version: 13\r\n"
                    b"cookie: a=b\r\n"
                    b"Connection: Upgrade\r\n"
                    b"Upgrade: websocket\r\n"
                    b"Forwarded: for=127.0.0.1;host=localhost;proto=http\r\n"
                    b"X-Forwarded-For: 127.0.0.1\r\n"
                    b"X-Forwarded-Host: localhost\r\n"
                    b"X-Forwarded-Proto: http\r\n"
                    b"X-Forwarded-Port: %d\r\n"
                    b"X-Request-Id: random\r\n"
                    b"traceparent: 00-random\r\n\r\n" % gateway.ports["a"]
                )
                await peer.send(ACCEPTED)
                assert (await client.response()).status == 101
                assert await peer.frame() == Frame(True, TEXT, b"with the head")
                assert await peer.frame() == Frame(True, BINARY, b"after it")
                assert peer.received == head + first + second
                await close(client, peer)
            assert not await upstream.is_asked()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"opened": 1}
    assert (ends(metrics), handshakes(metrics)) == ({"closed": 1}, {"accepted": 1})


async def close(client, peer):
    """The closing handshake, begun by the client: both sides say their Close, and both streams end."""
    await client.send(close_frame(1000))
    assert await peer.frame() == Frame(True, CLOSE, b"\x03\xe8")
    await peer.send(server_frame(CLOSE, b"\x03\xe8"))
    await client.closed(1000)
    await client.end()
    await peer.end()


@pytest.mark.parametrize("answer", ["101", "403"])
def test_a_second_request_behind_the_first_reaches_no_upstream(io_driver, answer):
    """Behind a 101 it is a frame that breaks a rule, behind a refusal it is nothing."""
    second = b"GET /chat/admin HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def scenario(gateway):
        for is_at_once in (True, False):
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(HEAD.encode() + (second if is_at_once else b""))
                async with await upstream.take() as peer:
                    await peer.head()
                    head = peer.received
                    if not is_at_once:
                        await client.send(second)
                    if answer == "101":
                        await peer.send(ACCEPTED)
                        assert (await client.response()).status == 101
                        # All that it hears of the request is what was wrong with it as a frame.
                        assert await peer.frame() == Frame(True, CLOSE, b"\x03\xeareserved_bits")
                        head = peer.received
                        peer.finish_sending()
                        await client.closed(1002)
                    else:
                        await peer.send(b"HTTP/1.1 403 x\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n")
                        assert (await client.response()).status == 403
                    await client.end()
                    await peer.end()
                    assert peer.received == head
            assert not await upstream.is_asked()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == ({"violation": 2} if answer == "101" else {"refused": 2})
    assert connects(metrics) == ({"opened": 2} if answer == "101" else {"answered": 2})


def test_no_connection_to_an_upstream_is_used_twice(io_driver):
    """However willing the upstream is to go on: each client has one of its own, which ends with it."""
    keep = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: keep-alive\r\nKeep-Alive: max=9\r\n\r\ngone"

    async def scenario(gateway):
        peers = []
        for answer in (keep, ACCEPTED, keep, ACCEPTED):
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(HEAD.encode())
                peer = await upstream.accept(answer)
                peers.append(peer)
                response = await client.response()
                if answer is keep:
                    assert (response.status, response.body) == (404, b"gone")
                    assert response.fields["connection"] == "close" and "keep-alive" not in response.fields
                    await client.end()
                else:
                    client.finish_sending()
                    await client.gone()
            await peer.end()
            assert peer.received.count(b"GET ") == 1
        assert upstream.count == 4 and not await upstream.is_asked()
        for peer in peers:
            await peer.__aexit__()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"opened": 2, "answered": 2}
    assert ends(metrics) == {"client_gone": 2, "refused": 2}


def switching(old, new):
    """A 101 in which something else stands."""
    head = ACCEPTED.decode()
    assert old in head
    return head.replace(old, new, 1).encode()


def offering(line):
    """A good 101 but for a further line."""
    return f"{SWITCHING}{line}\r\n\r\n".encode()


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
BAD_ANSWERS = {
    "another accept": switching("s3pP", "S3pP"),
    "no accept": switching(f"Sec-WebSocket-Accept: {ACCEPT}\r\n", ""),
    "two accepts": offering(f"Sec-WebSocket-Accept: {ACCEPT}"),
    "two accepts, one wrong": offering("Sec-WebSocket-Accept: x"),
    "no upgrade": switching("Upgrade: websocket\r\n", ""),
    "another upgrade": switching("Upgrade: websocket", "Upgrade: h2c"),
    "two upgrades": switching("Upgrade: websocket", "Upgrade: websocket, h2c"),
    "no connection": switching("Connection: Upgrade\r\n", ""),
    "another connection": switching("Connection: Upgrade", "Connection: close"),
    "a subprotocol that was not offered": offering("Sec-WebSocket-Protocol: mqtt"),
    "two subprotocols": offering("Sec-WebSocket-Protocol: chat.v1, chat.v2"),
    "an empty subprotocol": offering("Sec-WebSocket-Protocol: "),
    "an extension that was not offered": offering("Sec-WebSocket-Extensions: permessage-deflate"),
    "an empty extension": offering("Sec-WebSocket-Extensions: "),
    "HTTP/1.0": switching("HTTP/1.1", "HTTP/1.0"),
    "a bare LF": switching("Protocols\r\n", "Protocols\n"),
    "a folded field": offering("X: y\r\n z"),
    "a space before a colon": switching("Upgrade:", "Upgrade :"),
    "a NUL": offering("X: y\0z"),
    "frames without a head": server_frame(TEXT, b"hello"),
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(64),
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "garbage": b"\r\n\r\n\0\xff" * 10,
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 Huh\r\nContent-Length: 0\r\n\r\n",
    "nine interim responses": INTERIM * 9 + ACCEPTED,
    "a refusal with two framings": b"HTTP/1.1 403 x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    "a refusal with two sizes": b"HTTP/1.1 403 x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a refusal in an unknown coding": b"HTTP/1.1 403 x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a refusal with a bad chunk": b"HTTP/1.1 403 x\r\nTransfer-Encoding: chunked\r\n\r\nz\r\nhello\r\n0\r\n\r\n",
    "many fields": b"HTTP/1.1 101 x\r\n" + b"X: y\r\n" * 200,
}


def test_an_answer_that_makes_no_sense_is_a_502(io_driver):
    """Nothing of it reaches the client, and nothing more is said to an upstream that gave it."""

    async def scenario(gateway):
        for name, answer in BAD_ANSWERS.items():
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(added("sec-websocket-protocol: chat.v1, chat.v2") + frame(TEXT, b"early"))
                async with await upstream.take() as peer:
                    await peer.head()
                    head = peer.received
                    await peer.send(answer)
                    response = await client.response()
                    assert response.status == 502, f"{name}: {response}"
                    assert response.fields.keys() == {
                        "connection", "cache-control", "content-type", "content-length",
                    }, name  # fmt: skip
                    await client.end()
                    await peer.gone()
                    assert peer.received == head, name

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"bad_handshake": len(BAD_ANSWERS)}
    assert ends(metrics) == {"upstream_unavailable": len(BAD_ANSWERS)}
    assert handshakes(metrics) == {"upstream_unavailable": len(BAD_ANSWERS)}


@pytest.mark.parametrize(
    ("beginning", "endless"),
    [
        (b"HTTP/1.1 101 x\r\nX: ", b"x" * 4096),
        (b"HTTP/1.1 101 x\r\n", b"X: y\r\n" * 700),
        (b"", INTERIM * 100),
        (b"HTTP/1.1 ", b"1" * 4096),
    ],
    ids=["a long field", "many fields", "interim responses", "a long status line"],
)
def test_an_endless_answer_is_a_502_and_costs_no_memory(io_driver, beginning, endless):
    async def scenario(gateway):
        before = gateway.resident_size()
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.send(HEAD.encode())
            async with await upstream.accept(beginning) as peer:
                with pytest.raises(ConnectionError):
                    async with asyncio.timeout(30):
                        while True:
                            await peer.send(endless)
                assert (await client.response()).status == 502
                await client.end()
        assert gateway.resident_size() - before < 1 << 20

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"bad_handshake": 1}


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 101 Switching Pro", INTERIM], ids=["nothing", "half", "interim"])
def test_an_upstream_that_ends_before_its_answer_is_a_502(io_driver, part):
    async def scenario(gateway):
        for end in (Connection.finish_sending, Connection.reset):
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(HEAD.encode())
                async with await upstream.accept(part) as peer:
                    end(peer)
                    assert (await client.response()).status == 502
                    await client.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"reset": 2}
    assert ends(metrics) == {"upstream_unavailable": 2}


def test_interim_responses_are_passed_over_up_to_eight(io_driver):
    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.send(HEAD.encode())
            async with await upstream.accept(INTERIM * 8 + ACCEPTED) as peer:
                response = await client.response()
                assert response.status == 101 and "link" not in response.fields
                await close(client, peer)

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"opened": 1}


def test_frames_in_the_segment_of_the_101_and_a_101_byte_by_byte(io_driver):
    frames = server_frame(TEXT, b"one") + server_frame(BINARY, b"two" * 1000)

    async def scenario(gateway):
        for step in (1, 7, 100_000):
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(HEAD.encode())
                async with await upstream.accept(b"") as peer:
                    answer = ACCEPTED + frames
                    for at in range(0, len(ACCEPTED) + 10, step):
                        await peer.send(answer[at : at + step])
                        await settle(gateway) if step == 7 else None
                    await peer.send(answer[at + step :])
                    assert (await client.response()).status == 101
                    assert await client.frame() == Frame(True, TEXT, b"one")
                    assert await client.frame() == Frame(True, BINARY, b"two" * 1000)
                    await close(client, peer)

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"opened": 3}
    assert ends(metrics) == {"closed": 3}


# Refusals of an upstream: what it sends, whether its stream then ends, and the head and body that the client gets.
CHUNKS = b"5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nX-Trailer: y\r\n\r\n"
REFUSALS = {
    "by size": (
        b"HTTP/1.1 403 Never\r\nContent-Length: 5\r\nServer: a\r\n\r\nhello and more",
        b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 5\r\nServer: a\r\n\r\nhello",
    ),
    "in chunks": (
        b"HTTP/1.1 401 x\r\nTransfer-Encoding: chunked\r\nWWW-Authenticate: Basic\r\n\r\n" + CHUNKS + b"HTTP/1.1 200",
        b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        b"WWW-Authenticate: Basic\r\n\r\n" + CHUNKS,
    ),
    "to the end of the stream": (
        b"HTTP/1.0 500 x\r\nServer: a\r\n\r\nhello",
        b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nServer: a\r\n\r\nhello",
    ),
    "without a body": (b"HTTP/1.1 204 x\r\n\r\n", b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n"),
    "200 is no 101": (
        b"HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhi",
    ),
    "a redirect": (
        b"HTTP/1.1 302 x\r\nLocation: http://a/\r\nContent-Length: 0\r\nConnection: X-Hop\r\nX-Hop: y\r\n"
        b"Keep-Alive: z\r\nProxy-Authenticate: w\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: http://a/\r\n\r\n",
    ),
    "426": (
        b"HTTP/1.1 426 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Content-Length: 0\r\n\r\n",
    ),
}


def test_a_refusal_is_passed_on_whole_and_nothing_behind_it(io_driver):
    async def scenario(gateway):
        for name, (answer, expected) in REFUSALS.items():
            for step in (3, 100_000):
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.send(HEAD.encode() + frame(TEXT, b"early"))
                    async with await upstream.accept(b"") as peer:
                        # The gateway leaves when it has the whole, so what is behind that may meet nobody.
                        with contextlib.suppress(ConnectionError):
                            for at in range(0, len(answer), step):
                                await peer.send(answer[at : at + step])
                        if name == "to the end of the stream":
                            peer.finish_sending()
                        async with asyncio.timeout(10):
                            assert await client.reader.read(-1) == expected, name

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    count = 2 * len(REFUSALS)
    assert connects(metrics) == {"answered": count}
    assert (ends(metrics), handshakes(metrics)) == ({"refused": count}, {"upstream_refused": count})


# Refusals that are cut short, with how: the client must be able to tell.
CUT_SHORT = {
    "by size": (b"HTTP/1.1 403 x\r\nContent-Length: 5\r\n\r\nhell", "end"),
    "in chunks": (b"HTTP/1.1 403 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "end"),
    "in the trailers": (b"HTTP/1.1 403 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n", "end"),
    "by a reset": (b"HTTP/1.1 403 x\r\nContent-Length: 5\r\n\r\nhell", "reset"),
    "by a reset, without a size": (b"HTTP/1.1 403 x\r\n\r\nhell", "reset"),
    "by silence": (b"HTTP/1.1 403 x\r\nContent-Length: 5\r\n\r\nhell", "silence"),
    "by a bad chunk": (b"HTTP/1.1 403 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "garbage"),
}


@pytest.mark.parametrize("name", CUT_SHORT)
def test_a_refusal_that_is_cut_short_is_not_passed_on_as_a_whole_one(io_driver, name):
    answer, how = CUT_SHORT[name]
    body = answer.partition(b"\r\n\r\n")[2]

    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.send(HEAD.encode())
            async with await upstream.accept(answer) as peer:
                async with asyncio.timeout(10):
                    await client.reader.readuntil(b"\r\n\r\n" + body)
                if how == "end":
                    peer.finish_sending()
                elif how == "reset":
                    peer.reset()
                elif how == "garbage":
                    await peer.send(b"z\r\n")
                async with asyncio.timeout(10):
                    if "without a size" in name:
                        with pytest.raises(ConnectionResetError):
                            await client.reader.read(-1)
                    else:
                        assert await client.reader.read(-1) == b""

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"answered": 1}
    assert ends(metrics) == {"upstream_gone": 1}


def test_fields_of_one_connection_stay_there(io_driver):
    """Both ways: the options of Connection, what it lists, and names that others could take for them."""
    lines = "\r\n".join(
        [
            "connection: X-Listed, keep-alive",
            "x-listed: a",
            "keep-alive: timeout=5",
            "proxy-connection: keep-alive",
            "proxy-authorization: Basic a",
            "te: trailers",
            "trailer: x",
            "transfer_encoding: chunked",
            "content_length: 5",
            "sec_websocket_key: a",
            "x_forwarded_for: 192.0.2.1",
            "x-passed: b",
            "sec-websocket-extensions: x-first; a=1",
            "sec-websocket-protocol: chat.v1",
        ]
    )
    answer = offering(
        "Connection: X-Listed\r\nX-Listed: a\r\nKeep-Alive: b\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n"
        "X-Passed: c\r\nSec-WebSocket-Extensions: x-first\r\nSec-WebSocket-Protocol: chat.v1\r\nSet-Cookie: d=e"
    )

    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.send(added(lines))
            async with await upstream.accept(answer) as peer:
                _, fields = peer.request
                names = [name for name, _ in fields]
                assert names == [
                    "Host", "sec-websocket-key", "sec-websocket-version", "x-passed", "sec-websocket-extensions",
                    "sec-websocket-protocol", "Connection", "Upgrade", "Forwarded", "X-Forwarded-For",
                    "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Request-Id", "traceparent",
                ]  # fmt: skip
                assert dict(fields)["Connection"] == "Upgrade"
                head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
                assert head.split("\r\n") == [
                    "HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
                    f"Sec-WebSocket-Accept: {ACCEPT}", "X-Passed: c", "Sec-WebSocket-Extensions: x-first",
                    "Sec-WebSocket-Protocol: chat.v1", "Set-Cookie: d=e", "", "",
                ]  # fmt: skip
                # The reserved bits belong to the extension now.
                await client.send(frame(TEXT, b"a", reserved=4))
                assert (await peer.frame()).payload == b"a"
                await close(client, peer)

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert metrics.value("forwarding_ignored_total", port="a") == 1
    assert ends(metrics) == {"closed": 1}


EDITS = """
upstream_path = "/v2/*"
request_headers = { remove = ["Cookie", "X-Debug"], set = { "X-Env" = "prod", "Host" = "inside.example:81" } }
response_headers = { remove = ["server"], set = { "X-Gateway" = "ringway" } }
"""


def test_fields_and_the_path_are_edited_as_the_route_says(io_driver):
    async def exchange(gateway, target, *, path, status):
        async with await Connection.open(gateway.ports["a"]) as client:
            head = added("COOKIE: a\r\ncookie: b\r\nx-debug: c\r\nx-env: forged\r\nx-other: d").replace(
                b"/chat/room", target.encode()
            )
            await client.send(head)
            answer = offering("Server: a\r\nX-Gateway: forged\r\nX-Kept: b")
            if status != 101:
                answer = f"HTTP/1.1 {status} x\r\nServer: a\r\nX-Gateway: forged\r\nContent-Length: 0\r\n\r\n".encode()
            async with await upstream.accept(answer) as peer:
                line, fields = peer.request
                assert line == f"GET {path} HTTP/1.1"
                values = [(name.lower(), value) for name, value in fields]
                assert [value for name, value in values if name == "host"] == ["inside.example:81"]
                assert [value for name, value in values if name == "x-env"] == ["prod"]
                assert not {"cookie", "x-debug"} & dict(values).keys() and dict(values)["x-other"] == "d"
                # What the client asked for is still told.
                assert dict(values)["x-forwarded-host"] == "localhost"
                response = await client.response()
                assert response.status == status and response.fields["x-gateway"] == "ringway"
                assert "server" not in response.fields
                if status == 101:
                    await close(client, peer)
                else:
                    await client.end()

    async def scenario(gateway):
        await exchange(gateway, "/chat/room?a=/b&c=%2f", path="/v2/room?a=/b&c=%2f", status=101)
        await exchange(gateway, "/chat", path="/v2", status=101)
        await exchange(gateway, "/%63hat/%72oom/", path="/v2/%72oom/", status=403)
        await exchange(gateway, "http://localhost/chat/room", path="/v2/room", status=101)

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream, keys=EDITS), scenario)
    assert connects(metrics) == {"opened": 3, "answered": 1}


@pytest.mark.parametrize("count", [244, 251])
def test_a_head_with_as_many_fields_as_may_be_is_passed_on(io_driver, count):
    """The gateway adds fields of its own, beyond what it would read itself."""
    lines = "\r\n".join(f"x-{index}: y" for index in range(count))

    async def scenario(gateway):
        async with upstream.answering(), await Connection.open(gateway.ports["a"]) as client:
            await client.send(added(lines))
            response = await client.response()
            assert response.status == 101, response
            await client.close()

    config = CONFIG.replace("[limits]", "[limits]\nrequest_head_count_max = 256")
    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario, config=config)
    assert connects(metrics) == {"opened": 1}
