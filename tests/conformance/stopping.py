"""Stopping and starting: what clients see of a SIGTERM, and what a gateway says that cannot start."""

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from collections import Counter
from contextlib import contextmanager

import pytest

from client import CLOSE, Connection, close_frame, upgrade
from harness import BAD_CONFIGURATION, CANNOT_BIND, Gateway, free_port, run_to_end

CONFIG = """
[limits]
close_timeout_ms = 1000
[[port]]
number = {number}
name = "a"
address = "127.0.0.1"
[[route]]
path = "/echo"
service = "echo"
"""

# From the signal to the exit, where every client answers its Close.
STOP_S = 10.0


@pytest.fixture
def gateway(io_driver):
    with Gateway(CONFIG.format(number=0), io_driver=io_driver) as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_client_gets_1001_and_no_reset(gateway, number):
    async def scenario():
        clients = [await (await Connection.open(gateway.ports["a"])).accepted() for _ in range(200)]
        gateway.signal(number)
        for client in clients:
            await client.closed(1001)
        # Their answers are still out, so the gateway is still here to say that it is leaving.
        assert gateway.get("/live")[0] == 200
        assert gateway.get("/ready")[0] == 503
        for client in clients:
            await client.send(close_frame(1001))
        for client in clients:
            await client.end()

    start = time.monotonic()
    asyncio.run(scenario())
    assert gateway.process.wait(STOP_S) == 0
    assert time.monotonic() - start < STOP_S


def test_queued_connections_are_answered(gateway):
    """Frozen, the gateway cannot accept: what then waits in its queue is not lost when the signal comes first."""

    async def scenario():
        gateway.signal(signal.SIGSTOP)
        clients = [await Connection.open(gateway.ports["a"]) for _ in range(100)]
        for client in clients:
            await client.send(upgrade())
        gateway.signal(signal.SIGTERM)
        gateway.signal(signal.SIGCONT)
        statuses = set()
        for client in clients:
            response = await client.response()
            statuses.add(response.status)
            if response.status == 101:
                await client.closed(1001)
                await client.send(close_frame(1001))
            await client.end()
        assert statuses <= {101, 503}, statuses

    asyncio.run(scenario())
    assert gateway.process.wait(STOP_S) == 0


def test_clients_that_come_while_it_stops_are_answered_or_meet_a_closed_port(gateway):
    """None is reset once it is connected, however close to the end it comes."""

    async def come_and_go(statuses, enough):
        while True:
            try:
                client = await Connection.open(gateway.ports["a"])
            except ConnectionRefusedError:
                return
            async with client:
                await client.send(upgrade())
                response = await client.response()
                statuses[response.status] += 1
                if response.status == 101:
                    await client.send(close_frame(1000))
                    # The gateway's own Close may have crossed ours.
                    assert (await client.frame()).opcode == CLOSE
                await client.end()
            if statuses[101] >= 500:
                enough.set()

    async def scenario():
        statuses, enough = Counter(), asyncio.Event()
        coming = [asyncio.create_task(come_and_go(statuses, enough)) for _ in range(50)]
        await enough.wait()
        gateway.signal(signal.SIGTERM)
        await asyncio.gather(*coming)
        print(statuses)
        assert set(statuses) <= {101, 503}, statuses

    asyncio.run(scenario())
    assert gateway.process.wait(STOP_S) == 0


def test_a_client_that_does_not_answer_is_cut_at_the_deadline(gateway):
    async def scenario():
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted()
            gateway.signal(signal.SIGTERM)
            await client.closed(1001)
            await client.gone()

    start = time.monotonic()
    asyncio.run(scenario())
    assert gateway.process.wait(STOP_S) == 0
    assert time.monotonic() - start >= 1.0


def test_a_second_signal_cuts():
    config = CONFIG.format(number=0).replace("close_timeout_ms = 1000", "close_timeout_ms = 60000")

    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted()
            gateway.signal(signal.SIGTERM)
            await client.closed(1001)
            gateway.signal(signal.SIGTERM)
            await client.gone()

    with Gateway(config) as gateway:
        asyncio.run(scenario(gateway))
        assert gateway.process.wait(5) in (0, 1)


def test_without_clients_it_leaves_at_once(gateway):
    start = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - start < 2


def test_a_second_instance_on_the_same_port_refuses_to_start():
    number = free_port()
    with Gateway(CONFIG.format(number=number)) as first:
        code, log = run_to_end(Gateway(CONFIG.format(number=number)))
        assert code == CANNOT_BIND, log
        assert str(number) in log and "in use" in log, log
        assert first.is_ready()

        async def scenario():
            for _ in range(50):
                async with await Connection.open(number) as client:
                    await client.accepted()
                    await client.close()

        asyncio.run(scenario())


def test_a_taken_port_is_named_with_the_cause():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        code, log = run_to_end(Gateway(CONFIG.format(number=number)))
    assert code == CANNOT_BIND, log
    assert str(number) in log and "in use" in log, log


def test_a_taken_admin_port_is_named_with_the_cause():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        code, log = run_to_end(Gateway(CONFIG.format(number=0), admin=number))
    assert code == CANNOT_BIND, log
    assert str(number) in log and "in use" in log, log


def test_a_bad_configuration_is_refused_with_every_fault():
    faulty = CONFIG.format(number=0).replace("close_timeout_ms", "close_timeout").replace('"echo"', '"ecco"')
    code, log = run_to_end(Gateway(faulty))
    assert code == BAD_CONFIGURATION, log
    assert "close_timeout_ms" in log and "ecco" in log, log


def test_a_port_of_the_built_in_default_that_is_taken_is_one_warning():
    with own_network(), socket.create_server(("127.0.0.1", 80)), Gateway(None, admin=9180) as gateway:
        assert gateway.ports.keys() >= {"8080"}, gateway.ports
        warnings = [line for line in gateway.log().splitlines() if '"WARN"' in line or '"level":"warn"' in line.lower()]
        assert len(warnings) == 1 and "80" in warnings[0] and "in use" in warnings[0], warnings

        async def scenario():
            async with await Connection.open(8080) as client:
                await client.accepted()
                await client.echo(b"on the other port")
                await client.close()

        asyncio.run(scenario())


@contextmanager
def own_network():
    """A network of this thread's own with nothing but a loopback interface, where every port is free."""
    new_network, interface_up, set_flags = 0x40000000, 0x1, 0x8914
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(new_network) != 0:
            raise OSError(ctypes.get_errno(), "unshare: this test needs a network namespace, as root has it")
        with socket.socket() as probe:
            fcntl.ioctl(probe, set_flags, struct.pack("16sh14x", b"lo", interface_up))
        yield
    finally:
        libc.setns(before, new_network)
        os.close(before)
