"""How much anybody may have: addresses that may come, connections and handshakes of each, rates, and memory."""

import asyncio
import contextlib
import socket
import struct
import threading
import time

import pytest

from client import BINARY, TEXT, Bystander, Connection, close_frame, frame, upgrade
from harness import Gateway, wait_until

PORT = """
[gateway]
shards = 2
{gateway}
[[port]]
number = 0
name = "a"
address = "{address}"
{port}
[[port]]
number = 0
name = "b"
address = "127.0.0.1"
"""

ROUTE = """
[[route]]
path = "/echo"
service = "echo"
{route}
"""


def config(*, gateway="", port="", route="", address="127.0.0.1"):
    """The configuration of an echo on two ports, of which the first has these lines."""
    return PORT.format(gateway=gateway, port=port, address=address) + ROUTE.format(route=route)


async def connect(gateway, source="127.0.0.1", *, port="a", to="127.0.0.1"):
    """A connection from this address, on which nothing has been said."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    sock = socket.socket(family)
    sock.setblocking(False)
    sock.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(sock, (to, gateway.ports[port]))
    return Connection(*await asyncio.open_connection(sock=sock))


async def asks(gateway, source="127.0.0.1", *, head=None, **arguments):
    """The answer to an opening handshake from this address; the connection ends then."""
    client = await connect(gateway, source, **arguments)
    async with client:
        with contextlib.suppress(ConnectionError):
            await client.send(head or upgrade())
        response = await client.response()
        if response.status == 101:
            await client.close()
        return response


def test_addresses_that_may_not_come_are_told_and_counted(io_driver):
    port = 'allow = ["127.0.0.0/16"]\ndeny = ["127.0.0.66", "127.0.9.0/24"]'
    with Gateway(config(port=port, route='deny = ["127.0.0.77"]'), io_driver=io_driver) as gateway:

        async def scenario():
            for source, status in [
                ("127.0.0.1", 101),
                ("127.0.8.8", 101),
                ("127.0.0.66", 403),
                ("127.0.9.1", 403),
                ("127.1.0.1", 403),
                ("127.0.0.77", 403),
            ]:
                response = await asks(gateway, source)
                assert response.status == status, source
                assert status == 101 or b"address" in response.body
            # The other port has no such rules, and the route has.
            assert (await asks(gateway, "127.0.0.66", port="b")).status == 101
            assert (await asks(gateway, "127.0.0.77", port="b")).status == 403

        asyncio.run(scenario())
        metrics = gateway.at_rest()
        assert metrics.by("port", "address_refusals_total", reason="denied") == {"a": 4, "b": 1}
        assert metrics.by("result", "handshakes_total") == {"accepted": 3, "auth": 5}
        assert metrics.by("end", "connections_ended_total") == {"closed": 3, "refused": 5}


def test_the_client_of_a_proxy_is_who_counts(io_driver):
    def header(source):
        addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 4000, 80)
        return b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11" + struct.pack("!H", len(addresses)) + addresses

    port = 'proxy_protocol = { trusted = ["127.0.0.0/8"] }\ndeny = ["192.0.2.66"]\n'
    port += "limits = { connections_per_address_max = 2, handshakes_per_address_per_s = 5 }"
    with Gateway(config(port=port, route='trusted = ["192.0.2.0/24"]'), io_driver=io_driver) as gateway:

        async def scenario():
            assert (await asks(gateway, head=header("192.0.2.66") + upgrade())).status == 403
            clients = [await connect(gateway) for _ in range(3)]
            for client, status in zip(clients, (101, 101, 429), strict=True):
                await client.send(header("192.0.2.1") + upgrade())
                response = await client.response()
                assert response.status == status
            assert int(response.fields["retry-after"]) > 0 and b"Too many connections" in response.body
            assert (await asks(gateway, head=header("192.0.2.2") + upgrade())).status == 101
            # Whom a trusted proxy speaks for is who does the handshakes.
            for client in clients[:2]:
                await client.close()
            for client in clients:
                client.writer.close()
            heads = [upgrade(x_forwarded_for=f"198.51.100.{number}") for number in range(20)]
            found = [(await asks(gateway, head=header("192.0.2.3") + head)).status for head in heads]
            assert found == [101] * 20
            head = header("192.0.2.3") + upgrade(x_forwarded_for="198.51.100.99")
            found = [(await asks(gateway, head=head)).status for _ in range(8)]
            assert found[:5] == [101] * 5 and 429 in found

        asyncio.run(scenario())
        gateway.at_rest()


def test_connections_of_an_address_are_counted_over_all_shards_and_given_back(io_driver):
    limits = "limits = { connections_per_address_max = 10 }"
    with Gateway(config(port=limits), io_driver=io_driver) as gateway:

        async def scenario():
            for _ in range(3):
                clients = []
                for source in ("127.0.0.1", "127.0.0.2"):
                    for index in range(14):
                        client = await connect(gateway, source)
                        with contextlib.suppress(ConnectionError):
                            await client.send(upgrade())
                        response = await client.response()
                        assert response.status == (101 if index < 10 else 429), (source, index)
                        clients.append(client)
                for index, client in enumerate(clients):
                    # In whatever way they end.
                    if index % 3 == 0:
                        client.reset()
                    client.writer.close()
                await asyncio.to_thread(gateway.at_rest)

        asyncio.run(scenario())
        metrics = gateway.at_rest()
        assert metrics.by("reason", "address_refusals_total") == {"connections": 24}
        assert metrics.value("address_tables_bytes", port="a") == 524_224
        assert metrics.value("address_tables_bytes", port="b") == 0


def test_handshakes_of_an_address_are_limited_in_a_second(io_driver):
    limits = "limits = { handshakes_per_address_per_s = 20 }"
    with Gateway(config(port=limits), io_driver=io_driver) as gateway:

        async def scenario():
            began = time.monotonic()
            found = [(await asks(gateway)) for _ in range(60)]
            elapsed = time.monotonic() - began
            admitted = sum(response.status == 101 for response in found)
            assert 20 <= admitted <= 21 + 20 * elapsed, (admitted, elapsed)
            refused = [response for response in found if response.status == 429]
            assert refused and all(response.fields["retry-after"] == "1" for response in refused)
            # Others, and what opens no WebSocket, are not concerned.
            assert (await asks(gateway, "127.0.0.9")).status == 101
            head = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"
            assert (await asks(gateway, head=head)).status == 426
            return len(refused)

        refused = asyncio.run(scenario())
        metrics = gateway.at_rest()
        assert metrics.value("address_refusals_total", reason="handshakes") == refused
        assert metrics.value("handshakes_total", result="rate") == refused


def test_an_address_of_ipv6_is_a_network(io_driver):
    """Here ::1 is one, and those of IPv4 come mapped."""
    limits = "limits = { connections_per_address_max = 1 }"
    with Gateway(config(port=limits, address="::"), io_driver=io_driver) as gateway:

        async def scenario():
            six = await connect(gateway, "::1", to="::1")
            await six.accepted()
            assert (await asks(gateway, "::1", to="::1")).status == 429
            four = await connect(gateway)
            await four.accepted()
            assert (await asks(gateway)).status == 429
            assert (await asks(gateway, "127.0.0.2")).status == 101
            for client in (six, four):
                await client.close()
                client.writer.close()

        asyncio.run(scenario())
        gateway.at_rest()


def test_a_flood_from_one_address_keeps_nobody_else_out(io_driver):
    limits = "limits = { connections_per_address_max = 50, handshakes_per_address_per_s = 50 }"
    with Gateway(config(port=limits), io_driver=io_driver) as gateway:
        port, stop, flood_count = gateway.ports["a"], threading.Event(), [0, 0]

        def flood(index):
            head = upgrade()
            while not stop.is_set():
                with contextlib.suppress(OSError), socket.socket() as sock:
                    sock.bind(("127.6.6.6", 0))
                    sock.settimeout(5)
                    sock.connect(("127.0.0.1", port))
                    sock.sendall(head)
                    sock.recv(4096)
                    flood_count[index] += 1

        async def scenario():
            before = gateway.resident_size()
            floods = [asyncio.create_task(asyncio.to_thread(flood, index)) for index in range(2)]
            # 20,000 others, each from an address of its own, in eight at a time.
            numbers = iter(range(20_000 // 4))

            async def others():
                for number in numbers:
                    source = f"127.{1 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"
                    assert (await asks(gateway, source)).status == 101, source

            async with Bystander(gateway.ports["b"]) as bystander:
                await asyncio.gather(*(others() for _ in range(8)))
            stop.set()
            await asyncio.gather(*floods)
            moved = gateway.resident_size() - before
            print(
                f"{sum(flood_count)} handshakes of one address beside 5,000 others, memory moved by {moved >> 10} KiB; "
                f"bystander: the slowest of {bystander.count} round trips took {bystander.slowest_s * 1000:.0f} ms"
            )
            assert moved < 4 << 20

        asyncio.run(scenario())
        metrics = gateway.at_rest()
        refused = metrics.by("reason", "address_refusals_total", port="a")
        assert refused["handshakes"] > 0.2 * sum(flood_count), refused
        assert metrics.value("address_tables_bytes") == 2 * 524_224


@pytest.mark.parametrize("service", ["echo", "websocket"])
def test_who_sends_too_much_is_read_more_slowly_and_loses_nothing(io_driver, service):
    limits = 'rate_policy = "pause"\nlimits = { bytes_per_s = 100000 }'
    with Gateway(config(), io_driver=io_driver) as behind:
        upstream = f"ws://127.0.0.1:{behind.ports['b']}"
        route = limits if service == "echo" else f'upstreams = ["{upstream}"]\n{limits}'
        text = config(route=route).replace('service = "echo"', f'service = "{service}"')
        with Gateway(text, io_driver=io_driver) as gateway:

            async def scenario():
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.accepted()
                    messages = [bytes([number]) * 1000 for number in range(250)]
                    began = time.monotonic()

                    async def send():
                        for message in messages:
                            await client.send(frame(BINARY, message))

                    sending = asyncio.create_task(send())
                    for message in messages:
                        assert (await client.frame()).payload == message
                    await sending
                    elapsed = time.monotonic() - began
                    # 250 KB, of which 100 KB were free, and a read more may have been taken in advance.
                    assert 0.8 < elapsed < 2.6, elapsed
                    await client.close()

            asyncio.run(scenario())
            metrics = gateway.at_rest()
            assert not metrics.by("kind", "violations_total")
            assert metrics.value("messages_total", direction="received") == 250


def test_memory_has_a_ceiling_with_steps(io_driver):
    with Gateway(config(gateway='memory_max = "48MiB"'), io_driver=io_driver) as gateway:

        def level():
            return int(gateway.metrics().value("memory_level"))

        async def scenario():
            assert gateway.metrics().value("memory_ceiling_bytes") == 48 << 20 and level() == 0
            quiet = [await (await Connection.open(gateway.ports["a"])).accepted() for _ in range(20)]
            # Unfinished messages, of which each holds megabytes.
            hogs, reached = [], 0
            while reached < 3:
                hog = await Connection.open(gateway.ports["a"])
                await hog.send(upgrade())
                response = await hog.response()
                if reached >= 2:
                    assert response.status == 503 and int(response.fields["retry-after"]) > 0
                    hog.writer.close()
                    hog = hogs[-1]
                else:
                    assert response.status == 101
                    hogs.append(hog)
                    await hog.send(frame(TEXT, b"x" * (1 << 20), final=False))
                await hog.send(frame(0, b"x" * (1 << 20), final=False))
                await asyncio.sleep(0)
                await asyncio.to_thread(time.sleep, 0.3)
                reached = max(reached, await asyncio.to_thread(level))
            # Who is quiet is asked to leave, which takes ten seconds of quiet, and is told to come again.
            for client in quiet:
                await client.closed(1013)
                await client.send(close_frame(1013))
                await client.end()
                client.writer.close()
            for hog in hogs:
                hog.reset()
            await asyncio.to_thread(wait_until, lambda: level() == 0, "there is memory again")
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.accepted()
                await client.close()

        asyncio.run(scenario())
        metrics = gateway.at_rest()
        # Whoever is long about a message is quiet, too.
        assert metrics.value("connections_ended_total", end="memory") >= 20
        assert metrics.value("closes_total", initiator="gateway", code="1013") >= 20
        assert metrics.value("handshakes_total", result="limit") >= 1
        log = gateway.log()
        assert '"level":3' in log and "memory is less short" in log
