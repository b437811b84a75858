"""Quiet clients: who is pinged, who is kept, who is let go, and for which reason."""

import asyncio
import time

from client import CLOSE, PING, PONG, TEXT, Connection, close_frame, frame
from harness import Gateway

CONFIG = """
[gateway]
shards = 1
[limits]
{limits}
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[route]]
path = "/echo"
service = "echo"
"""


def serve(io_driver, scenario, **limits):
    """Runs a scenario against a gateway with these limits, and returns its metrics at rest."""
    config = CONFIG.format(limits="\n".join(f"{key} = {value}" for key, value in limits.items()))
    with Gateway(config, io_driver=io_driver) as gateway:
        asyncio.run(scenario(gateway.ports["a"]))
        return gateway.at_rest()


def test_a_client_that_answers_is_pinged_again_and_again(io_driver):
    """Each interval of silence, however long a pong might have taken."""

    async def scenario(port):
        async with await Connection.open(port) as client:
            await client.accepted()
            start = time.monotonic()
            for _ in range(4):
                ping = await client.frame()
                assert ping.opcode == PING
                await client.send(frame(PONG, ping.payload))
            assert 1.0 <= time.monotonic() - start < 4
            await client.close()

    metrics = serve(io_driver, scenario, ping_interval_ms=300, pong_timeout_ms=60000)
    assert metrics.value("ping_round_trip_seconds_count", port="a") == 4
    assert metrics.value("connections_ended_total", port="a", end="closed") == 1


def test_a_client_that_does_not_answer_is_told_and_let_go(io_driver):
    async def scenario(port):
        async with await Connection.open(port) as client:
            await client.accepted()
            pings = await client.closed(1011)
            assert [ping.opcode for ping in pings] == [PING]
            await client.end()

    metrics = serve(io_driver, scenario, ping_interval_ms=300, pong_timeout_ms=300)
    assert metrics.value("connections_ended_total", port="a", end="pong_timeout") == 1


def test_any_byte_is_an_answer_to_a_ping(io_driver):
    async def scenario(port):
        async with await Connection.open(port) as client:
            await client.accepted()
            for _ in range(3):
                assert (await client.frame()).opcode == PING
                await client.echo(b"not a pong")
            await client.close()

    metrics = serve(io_driver, scenario, ping_interval_ms=300, pong_timeout_ms=600)
    assert metrics.value("connections_ended_total", port="a", end="closed") == 1


def test_pongs_keep_no_idle_client(io_driver):
    async def scenario(port):
        async with await Connection.open(port) as client:
            await client.accepted()
            while (ping := await client.frame()).opcode == PING:
                await client.send(frame(PONG, ping.payload))
            assert (ping.opcode, ping.payload) == (CLOSE, b"\x03\xe9")
            await client.send(close_frame(1001))
            await client.end()

    metrics = serve(io_driver, scenario, ping_interval_ms=300, pong_timeout_ms=60000, idle_timeout_ms=1200)
    assert metrics.value("connections_ended_total", port="a", end="idle") == 1
    assert metrics.value("closes_total", port="a", initiator="gateway", code="1001") == 1


def test_a_client_above_its_rate_is_let_go_with_1008(io_driver):
    async def scenario(port):
        async with await Connection.open(port) as client:
            await client.accepted()
            await client.send(frame(TEXT, b"one of many") * 30)
            await client.closed(1008)
            await client.end()

    metrics = serve(io_driver, scenario, messages_per_s=20)
    assert metrics.value("connections_ended_total", port="a", end="limit") == 1
    assert metrics.value("violations_total", port="a", kind="rate_exceeded") == 1
