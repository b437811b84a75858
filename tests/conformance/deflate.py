"""permessage-deflate over the wire: what is agreed on and refused, bombs, and what thousands of connections take."""

import asyncio
import random
import threading
import time
import zlib

import pytest

import peers
from client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Connection, Frame, close_frame, frame, upgrade
from harness import Gateway, wait_until
from upstream import Upstream, server_frame

MESSAGE_SIZE_MAX = 16 << 20

CONFIG = """
[gateway]
shards = 1
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[route]]
path = "/echo"
service = "echo"
deflate = true
[[route]]
path = "/dedicated"
service = "echo"
deflate = { mode = "dedicated", level = 6 }
[[route]]
path = "/all"
service = "echo"
deflate = { mode = "shared", size_min = 0, level = 9 }
[[route]]
path = "/small"
service = "echo"
deflate = true
limits = { message_size_max = 1000 }
[[route]]
path = "/costly"
service = "echo"
deflate = { mode = "dedicated", level = 9, window_bits = 15, size_min = 0 }
[[route]]
path = "/off"
service = "echo"
"""

RELAY = """
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[route]]
path = "/*"
service = "websocket"
upstreams = ["{upstream}"]
deflate = {{ mode = "{mode}", level = 6 }}
"""

OFFER = "permessage-deflate; client_max_window_bits"
NOTHING_KEPT = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
COMPRESSED = 4  # RSV1

# What an idle connection of this kind may take of the gateway's memory, in bytes: the connection itself, and of a
# dedicated one a window of 4 KiB for each side.
SHARED_SIZE_MAX = 1024
DEDICATED_SIZE_MAX = 1024 + 2 * 4096


@pytest.fixture
def gateway(io_driver):
    with Gateway(CONFIG, io_driver=io_driver) as running:
        yield running
        running.at_rest()
        assert running.metrics().value("panics_total") == 0
        assert running.metrics().value("deflate_context_bytes") == 0


async def connect(gateway, path="/echo", offer=OFFER, **arguments):
    """A client that has offered this, and what was agreed on."""
    client = await Connection.open(gateway.ports["a"], **arguments)
    await client.send(upgrade(path, sec_websocket_extensions=offer))
    response = await client.response()
    assert response.status == 101, response
    return client, response.fields.get("sec-websocket-extensions")


def deflated(message, *, bits=15, level=6):
    """The payload of a message that is compressed by itself (RFC 7692 section 7.2.1)."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -bits)
    data = stream.compress(message) + stream.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(b"\0\0\xff\xff")


def inflated(answer, *, bits=15, stream=None):
    """What an answer says, whether it came compressed or not."""
    if not answer.reserved:
        return answer.payload
    assert answer.reserved == COMPRESSED
    stream = stream or zlib.decompressobj(-bits)
    return stream.decompress(answer.payload + b"\0\0\xff\xff")


def text(size, seed=7):
    """Text that compresses as records of an application do."""
    rng = random.Random(seed)
    users = ["alice", "bob", "carol", "dave"]
    out = bytearray()
    while len(out) < size:
        out += f'{{"id":{rng.randrange(10**6)},"user":"{rng.choice(users)}","online":{rng.random() < 0.5}}},'.encode()
    return bytes(out[:size])


@pytest.mark.parametrize(
    ("path", "offer", "agreed"),
    [
        ("/off", OFFER, None),
        ("/echo", "x-webkit-deflate-frame", None),
        ("/echo", "permessage-deflate; server_max_window_bits=16", None),
        ("/echo", OFFER, NOTHING_KEPT),
        ("/echo", "permessage-deflate; x=1, permessage-deflate", NOTHING_KEPT),
        (
            "/echo",
            "permessage-deflate; server_max_window_bits=9",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; client_no_context_takeover",
        ),
        ("/dedicated", OFFER, "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"),
        (
            "/dedicated",
            "permessage-deflate; server_no_context_takeover; client_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; client_max_window_bits=10",
        ),
    ],
)
def test_what_is_agreed_on(gateway, path, offer, agreed):
    async def scenario():
        client, extensions = await connect(gateway, path, offer)
        async with client:
            assert extensions == agreed
            await client.echo(b"small")
            if agreed:
                bits = 9 if "bits=9" in agreed else 15
                kept = None if "server_no_context_takeover" in agreed else zlib.decompressobj(-12)
                for message in [text(300), text(20_000), random.Random(1).randbytes(5000)]:
                    await client.send(
                        frame(TEXT if message.isascii() else BINARY, deflated(message), reserved=COMPRESSED)
                    )
                    answer = await client.frame()
                    assert inflated(answer, bits=bits, stream=kept) == message
                    assert len(answer.payload) <= len(message)
                    assert bool(answer.reserved) == message.isascii()
            else:
                await client.send(frame(TEXT, deflated(text(300)), reserved=COMPRESSED))
                await client.closed(1002)
                return
            await client.close()

    asyncio.run(scenario())


def test_messages_refer_to_those_before_where_that_was_agreed_on(gateway):
    async def scenario():
        client, _ = await connect(gateway, "/dedicated")
        async with client:
            ours = zlib.compressobj(6, zlib.DEFLATED, -12)
            theirs = zlib.decompressobj(-12)
            sizes = []
            for index in range(300):
                message = text(400, seed=index % 3) + str(index).encode()
                data = ours.compress(message) + ours.flush(zlib.Z_SYNC_FLUSH)
                data = data.removesuffix(b"\0\0\xff\xff")
                cut = len(data) // 2
                await client.send(
                    frame(TEXT, data[:cut], reserved=COMPRESSED, final=False)
                    + frame(PING, b"between")
                    + frame(CONTINUATION, data[cut:])
                )
                assert await client.frame() == Frame(True, PONG, b"between")
                answer = await client.frame()
                assert inflated(answer, stream=theirs) == message
                sizes.append(len(answer.payload))
            # What was said before is what the later ones are made of.
            assert sum(sizes[3:]) / len(sizes[3:]) < sizes[0] / 4
            metrics = await asyncio.to_thread(gateway.metrics)
            assert 4096 < metrics.value("deflate_context_bytes") <= 2 * 4096
            assert metrics.value("deflate_bytes_total", direction="sent", form="compressed") == sum(sizes)
            # What is not compressed is no part of a context.
            await client.send(frame(BINARY, b"plain"))
            assert await client.frame() == Frame(True, BINARY, b"plain")
            await client.close()

    asyncio.run(scenario())


def test_many_messages_of_one_read_are_answered_in_order(gateway):
    async def scenario():
        client, _ = await connect(gateway, "/all")
        async with client:
            messages = [text(size, seed=size) for size in (0, 1, 5, 100, 126, 127, 1000, 3000) * 20]
            batch = b"".join(
                frame(TEXT, deflated(message), reserved=COMPRESSED) if index % 3 else frame(TEXT, message)
                for index, message in enumerate(messages)
            )
            await client.send(batch + close_frame(1000))
            for message in messages:
                assert inflated(await client.frame()) == message
            await client.closed(1000)

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/echo", "/dedicated"])
@pytest.mark.parametrize(
    ("kind", "frames", "code"),
    [
        ("invalid_deflate", frame(TEXT, b"no deflate", reserved=COMPRESSED), 1007),
        ("invalid_deflate", frame(BINARY, b"", reserved=COMPRESSED), 1007),
        ("invalid_deflate", frame(BINARY, deflated(text(1000))[:-9], reserved=COMPRESSED), 1007),
        ("invalid_utf8", frame(TEXT, deflated(b"caf\xe9" * 50), reserved=COMPRESSED), 1007),
        ("invalid_utf8", frame(TEXT, deflated("😀".encode()[:3]), reserved=COMPRESSED), 1007),
        ("reserved_bits", frame(TEXT, deflated(b"text"), reserved=2), 1002),
        ("reserved_bits", frame(TEXT, deflated(b"text"), reserved=COMPRESSED | 1), 1002),
        ("reserved_bits", frame(PING, b"", reserved=COMPRESSED), 1002),
        ("reserved_bits", frame(CLOSE, b"", reserved=COMPRESSED), 1002),
        (
            "reserved_bits",
            frame(TEXT, b"a", final=False) + frame(CONTINUATION, b"b", reserved=COMPRESSED),
            1002,
        ),
    ],
)
def test_what_breaks_a_rule_is_told(gateway, path, kind, frames, code):
    async def scenario():
        client, _ = await connect(gateway, path)
        async with client:
            await client.send(frame(TEXT, deflated(text(500)), reserved=COMPRESSED) + frames)
            [before] = await client.closed(code)
            assert inflated(before) == text(500)
            await client.end()

    asyncio.run(scenario())
    assert gateway.metrics().by("kind", "violations_total") == {kind: 1}


def test_the_limit_counts_what_a_message_inflates_to(gateway):
    async def scenario():
        noise = random.Random(2).randbytes(1001)
        for message, fits in [(text(1000), True), (text(1001), False), (noise[:1000], True), (noise, False)]:
            for is_compressed in (True, False):
                client, _ = await connect(gateway, "/small")
                async with client:
                    payload = deflated(message) if is_compressed else message
                    await client.send(frame(BINARY, payload, reserved=COMPRESSED if is_compressed else 0))
                    if fits:
                        assert inflated(await client.frame()) == message
                        await client.close()
                    else:
                        await client.closed(1009)

    asyncio.run(scenario())
    assert gateway.metrics().by("kind", "violations_total") == {"message_too_big": 4}


class Watch(threading.Thread):
    """Looks at the gateway's memory all the time, from entry to exit."""

    def __init__(self, gateway):
        super().__init__(daemon=True)
        self.gateway, self.largest = gateway, 0
        self._done = threading.Event()

    def run(self):
        while not self._done.is_set():
            self.largest = max(self.largest, self.gateway.resident_size())
            time.sleep(0.001)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exception):
        self._done.set()
        self.join()


@pytest.fixture(scope="module")
def bomb():
    """A message of 1 GiB that is a megabyte on the way."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(stream.compress(bytes(1 << 20)) for _ in range(1024)) + stream.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(b"\0\0\xff\xff")


@pytest.mark.parametrize("path", ["/echo", "/dedicated"])
@pytest.mark.parametrize("way", ["one frame", "fragments", "byte by byte"])
def test_a_bomb_is_told_and_moves_no_memory(gateway, bomb, path, way):
    async def scenario():
        # What is there once and for all: the inflater, and the room that it has.
        client, _ = await connect(gateway, path)
        async with client:
            await client.send(frame(BINARY, deflated(text(400_000)), reserved=COMPRESSED))
            inflated(await client.frame())
            await client.close()
        await asyncio.to_thread(gateway.at_rest)
        before = gateway.resident_size()
        with Watch(gateway) as watch:
            client, _ = await connect(gateway, path)
            async with client:
                if way == "one frame":
                    frames = [frame(BINARY, bomb, reserved=COMPRESSED)]
                elif way == "fragments":
                    pieces = [bomb[start : start + 1000] for start in range(0, len(bomb), 1000)]
                    frames = [frame(BINARY, pieces[0], reserved=COMPRESSED, final=False)]
                    frames += [frame(CONTINUATION, piece, final=False) for piece in pieces[1:]]
                else:
                    # As long as it takes to be told.
                    whole = frame(BINARY, bomb, reserved=COMPRESSED)
                    frames = [whole[start : start + 64] for start in range(0, 64 << 10, 64)]
                sending = asyncio.create_task(send_all(client, frames))
                await client.closed(1009)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        moved = watch.largest - before
        print(f"{way} of {path}: {len(bomb)} bytes on the way, memory moved by {moved >> 10} KiB")
        assert moved < 1 << 20

    asyncio.run(scenario())
    metrics = gateway.at_rest()
    assert metrics.by("kind", "violations_total") == {"message_too_big": 1}
    assert metrics.by("end", "connections_ended_total") == {"closed": 1, "message_too_big": 1}


async def send_all(client, frames):
    for piece in frames:
        try:
            await client.send(piece)
        except ConnectionError:
            return


@pytest.mark.parametrize(
    ("path", "size_max", "io_driver"),
    [("/echo", SHARED_SIZE_MAX, "io_uring"), ("/dedicated", DEDICATED_SIZE_MAX, "epoll")],
)
def test_five_thousand_connections_stay_within_what_is_stated(gateway, path, size_max):
    count = 5000

    async def talk(client):
        ours, theirs = zlib.compressobj(6, zlib.DEFLATED, -12), zlib.decompressobj(-12)
        for size in (6000, 200, 3000):
            message = text(size, seed=size)
            data = ours.compress(message) + ours.flush(zlib.Z_SYNC_FLUSH if path == "/dedicated" else zlib.Z_FULL_FLUSH)
            await client.send(frame(TEXT, data.removesuffix(b"\0\0\xff\xff"), reserved=COMPRESSED))
            stream = theirs if path == "/dedicated" else None
            assert inflated(await client.frame(), stream=stream) == message

    async def scenario():
        # What is there once and for all: the codec, and buffers for as many as are busy at one time.
        opened = await asyncio.gather(*(connect(gateway, path) for _ in range(200)))
        await asyncio.gather(*(talk(client) for client, _ in opened))
        await asyncio.gather(*(client.close() for client, _ in opened))
        await asyncio.to_thread(gateway.at_rest)
        before = gateway.resident_size()
        clients = []
        for _ in range(count // 100):
            opened = await asyncio.gather(*(connect(gateway, path, receive_buffer_size=8192) for _ in range(100)))
            await asyncio.gather(*(talk(client) for client, _ in opened))
            clients += [client for client, _ in opened]
        kept = (await asyncio.to_thread(gateway.metrics)).value("deflate_context_bytes")
        # Within a second those who were busy are idle.
        await asyncio.to_thread(
            wait_until, lambda: gateway.resident_size() - before <= count * size_max, "they take no more than is stated"
        )
        size = (gateway.resident_size() - before) / count
        print(f"{path}: {size:.0f} bytes a connection, {kept / count:.0f} of them windows")
        assert kept == (count * 2 * 4096 if path == "/dedicated" else 0)
        for client in clients:
            client.reset()
        await asyncio.gather(*(client.gone() for client in clients))

    asyncio.run(scenario())
    gateway.at_rest()
    wait_until(lambda: gateway.metrics().value("deflate_context_bytes") == 0, "the windows are gone")


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
@pytest.mark.parametrize("client", peers.CLIENTS)
def test_clients_talk_compressed_to_servers_that_do_not(io_driver, mode, client, tmp_path):
    count = 2000
    messages = peers.Messages.write(tmp_path / "messages", count, seed=7692)
    server = peers.NodeServer(False, tmp_path)
    with Gateway(RELAY.format(upstream=server.upstream, mode=mode), io_driver=io_driver) as gateway:

        async def scenario():
            url = f"ws://127.0.0.1:{gateway.ports['a']}"
            wanted = {"file": str(messages.file), "messages": messages.shapes, "subprotocols": ["v1", "v2"]}
            async with server:
                talk = {"url": f"{url}/echo", "action": "echo", "deflate": True, "code": 4001, "reason": "é€😀"}
                [told] = await peers.CLIENTS[client]([{**talk, **wanted}])
                return told, await server.ended()

        with gateway.leaving_nothing():
            told, seen = asyncio.run(scenario())
        metrics = gateway.at_rest()
    assert (told["extensions"], seen["extensions"]) == ("permessage-deflate", "")
    assert seen["digest"] == told["digest"]
    assert seen["count"] == told["count"] == count
    assert told["pongs"] == messages.fragmented_count
    assert (seen["code"], seen["reason"], told["code"]) == (4001, "é€😀", 4001)
    assert seen["subprotocol"] == told["subprotocol"] == "v2"
    assert metrics.by("end", "connections_ended_total") == {"closed": 1}
    assert metrics.value("deflate_context_bytes") == 0
    for direction in ("received", "sent"):
        assert metrics.value("messages_total", direction=direction) == count
        assert metrics.value("payload_bytes_total", direction=direction) < 0.9 * messages.payload_size
        plain = metrics.value("deflate_bytes_total", direction=direction, form="plain")
        assert metrics.value("deflate_bytes_total", direction=direction, form="compressed") < 0.9 * plain


@pytest.mark.parametrize("way", ["whole", "unfinished"])
def test_a_bomb_reaches_no_upstream(io_driver, bomb, way, tmp_path):
    server = peers.NodeServer(False, tmp_path)
    with Gateway(RELAY.format(upstream=server.upstream, mode="shared"), io_driver=io_driver) as gateway:

        async def scenario():
            async with server:
                client, agreed = await connect(gateway, "/echo")
                assert agreed == NOTHING_KEPT
                async with client:
                    await client.send(frame(TEXT, deflated(text(500)), reserved=COMPRESSED))
                    assert inflated(await client.frame()) == text(500)
                    payload = bomb if way == "whole" else bomb[:100_000]
                    sending = asyncio.create_task(
                        send_all(client, [frame(BINARY, payload, reserved=COMPRESSED, final=way == "whole")])
                    )
                    await client.closed(1009)
                    await sending
                return await server.ended()

        with gateway.leaving_nothing():
            seen = asyncio.run(scenario())
        assert (seen["count"], seen["code"]) == (1, 1009)
        assert gateway.at_rest().by("kind", "violations_total") == {"message_too_big": 1}


def test_what_clients_send_at_once_is_held_as_little_as_its_limit(io_driver):
    # 64 KiB of a client's come to 50 MiB here, each message within the limit, and the upstream takes none of it.
    size, count = 64 << 10, 6
    message = frame(BINARY, deflated(bytes(size), level=9), reserved=COMPRESSED)
    batch = message * (size // len(message))
    limits = f"limits = {{ message_size_max = {size}, frame_size_max = {size} }}"
    with Upstream() as upstream:
        config = "[gateway]\nshards = 1\n" + RELAY.format(upstream=upstream.url, mode="shared") + limits
        with Gateway(config, io_driver=io_driver) as gateway:

            async def scenario():
                before = await asyncio.to_thread(gateway.resident_size)
                clients, peers_of_clients = [], []
                for _ in range(count):
                    opening = asyncio.create_task(connect(gateway, "/"))
                    peers_of_clients.append(await upstream.accept())
                    clients.append((await opening)[0])
                with Watch(gateway) as watch:
                    for client in clients:
                        await client.send(batch)
                    await asyncio.to_thread(
                        wait_until,
                        lambda: gateway.metrics().value("messages_total", direction="received") > 10 * count,
                        "it has begun",
                    )
                    # And all of it arrives once there is room.
                    for peer in peers_of_clients:
                        for _ in range(len(batch) // len(message)):
                            assert (await peer.frame()).payload == bytes(size)
                moved = watch.largest - before
                print(f"{len(batch)} bytes of each of {count} clients: memory moved by {moved >> 10} KiB")
                assert moved < count << 20
                for connection in (*clients, *peers_of_clients):
                    connection.reset()

            asyncio.run(scenario())
            gateway.at_rest()


def test_a_close_in_a_read_that_exceeds_the_rate_is_the_only_one(io_driver):
    with Upstream() as upstream:
        config = RELAY.format(upstream=upstream.url, mode="shared") + "limits = { messages_per_s = 3 }"
        with Gateway(config, io_driver=io_driver) as gateway:

            async def scenario():
                opening = asyncio.create_task(connect(gateway, "/"))
                peer = await upstream.accept()
                client, _ = await opening
                async with client, peer:
                    await client.send(frame(TEXT, b"hello") * 6 + close_frame(4001, b"bye"))
                    for _ in range(6):
                        assert (await peer.frame()).payload == b"hello"
                    assert await peer.closed(4001) == []
                    await peer.send(server_frame(CLOSE, (4001).to_bytes(2)))
                    await peer.end()
                    await client.closed(4001)
                    await client.end()

            asyncio.run(scenario())
            metrics = gateway.at_rest()
    assert metrics.by("kind", "violations_total") == {}
    assert metrics.by("end", "connections_ended_total") == {"closed": 1}


@pytest.mark.parametrize("service", ["echo", "websocket"])
def test_a_read_of_thousands_of_messages_is_taken_in_many_turns_and_in_order(io_driver, service):
    # Both ways that a connection may end while the rest of a read waits for its turn: the client's Close behind it, and
    # a message that breaks a rule.
    texts = [b"%d" % number for number in range(5000)]
    batch = b"".join(
        frame(TEXT, deflated(text), reserved=COMPRESSED) if index % 2 else frame(TEXT, text)
        for index, text in enumerate(texts)
    )
    ends = [(close_frame(4001), 4001), (frame(TEXT, b"no deflate", reserved=COMPRESSED) + frame(TEXT, b"?"), 1007)]
    with Upstream() as upstream:
        config = RELAY.format(upstream=upstream.url, mode="shared")
        if service == "echo":
            config = CONFIG.replace('"/echo"', '"/"')
        with Gateway(config, io_driver=io_driver) as gateway:

            async def scenario(end, code):
                opening = asyncio.create_task(connect(gateway, "/"))
                peer = await upstream.accept() if service == "websocket" else None
                client, _ = await opening
                async with client:
                    sending = asyncio.create_task(client.send(batch + end))
                    if peer is None:
                        answers = await client.closed(code)
                        assert [inflated(answer) for answer in answers] == texts
                    else:
                        seen = [(await peer.frame()).payload for _ in texts]
                        assert seen == texts
                        assert await peer.closed(code) == []
                        await peer.send(server_frame(CLOSE, code.to_bytes(2)))
                        await peer.end()
                        await client.closed(code)
                        peer.reset()
                    await sending
                    await client.end()

            for end, code in ends:
                asyncio.run(scenario(end, code))
            metrics = gateway.at_rest()
    assert metrics.value("messages_total", direction="received") == 2 * len(texts) + 1
    assert metrics.by("kind", "violations_total") == {"invalid_deflate": 1}


def test_others_have_their_turns_while_a_costly_read_is_answered(gateway):
    async def scenario():
        bystander, _ = await connect(gateway, "/off")
        client, _ = await connect(gateway, "/costly")
        async with bystander, client:
            # Each message costs a new beginning with this window, empty as it is: some tenths of a second for all.
            await client.send(frame(BINARY, random.Random(5).randbytes(40_000)))
            await client.frame()
            await client.send(frame(BINARY, b"") * 10_000 + close_frame(1000))
            # Two bytes each, not looked at one by one: that would keep the bystander waiting, too.
            answers = asyncio.create_task(client.reader.readexactly(20_000))
            count = 0
            while not answers.done():
                await bystander.echo(b"x")
                count += 1
            assert await answers == bytes([0x82, 0]) * 10_000
            print(f"{count} round trips meanwhile")
            assert count >= 10
            await client.closed(1000)
            await client.end()
            await bystander.close()

    asyncio.run(scenario())
