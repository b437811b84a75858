"""Where no ring can be had, `auto` goes on with epoll and says so; a demanded ring is a refusal with the reason."""

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from client import Connection
from harness import CANNOT_BIND, Gateway, run_to_end

HERE = Path(__file__).parent

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
"""


def refusing(number):
    """A wrapper under which `io_uring_setup` fails with this error, as under a container runtime's seccomp filter."""
    return [sys.executable, str(HERE / "refuse_io_uring.py"), str(number)]


def switched_off(value, folder):
    """A wrapper under which `kernel.io_uring_disabled` has this value.

    A file mounted over the real one says so, in a mount namespace of its own, and `io_uring_setup` fails as it then
    does: the machine's own setting, which belongs to all who use it, is left alone.
    """
    file = folder / "io_uring_disabled"
    file.write_text(f"{value}\n")
    mount = f'mount --bind {file} /proc/sys/kernel/io_uring_disabled && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, "sh", *refusing(errno.EPERM)]


def without_locked_memory():
    """A wrapper under which no memory can be locked; root could all the same, so it gives up root's privileges."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "prlimit", "--memlock=0:0", "--"]


REASONS = {
    "EPERM": (lambda _folder: refusing(errno.EPERM), ["seccomp", "EPERM"]),
    "ENOSYS": (lambda _folder: refusing(errno.ENOSYS), ["seccomp", "ENOSYS"]),
    "sysctl 2": (lambda folder: switched_off(2, folder), ["io_uring_disabled", "2"]),
    "memlock": (lambda _folder: without_locked_memory(), ["locked memory"]),
}


@pytest.mark.parametrize("name", REASONS)
def test_auto_falls_back_to_epoll_and_says_so(name, tmp_path):
    wrapper, words = REASONS[name]
    with Gateway(CONFIG, wrapper=wrapper(tmp_path)) as gateway:
        check_driver(gateway, "epoll")
        for word in words:
            assert word in gateway.log(), gateway.log()


@pytest.mark.parametrize("name", REASONS)
def test_a_demanded_ring_that_cannot_be_had_is_refused_with_the_reason(name, tmp_path):
    wrapper, words = REASONS[name]
    code, log = run_to_end(Gateway(CONFIG, wrapper=wrapper(tmp_path), io_driver="io_uring"))
    assert code == CANNOT_BIND, log
    for word in words:
        assert word in log, log


def test_auto_takes_the_ring_where_there_is_one():
    with Gateway(CONFIG) as gateway:
        check_driver(gateway, "io_uring")


def test_epoll_is_taken_where_it_is_asked_for():
    with Gateway(CONFIG, io_driver="epoll") as gateway:
        check_driver(gateway, "epoll")


def check_driver(gateway, driver):
    """The metric and `/live` name this driver, and it echoes."""
    assert gateway.metrics().by("driver", "io_driver_info") == {driver: 1}
    status, live = gateway.get("/live")
    assert status == 200 and driver in live, live

    async def echo():
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted()
            for size in (0, 1, 5000, 1 << 20):
                await client.echo(os.urandom(size))
            await client.close()

    asyncio.run(echo())
    assert gateway.at_rest().by("end", "connections_ended_total") == {"closed": 1}
