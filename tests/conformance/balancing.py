"""Which upstream a client goes to: turns, limits, health, and names that change their addresses."""

import contextlib

import pytest

from client import Connection, upgrade
from harness import wait_until
from upstream import ACCEPTED, Upstream, accepted, connects, ends, relay, route, settle, status, until

HEAD = upgrade("/chat/room")
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@contextlib.contextmanager
def listening(count):
    """So many upstreams."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Upstream()) for _ in range(count)]


@contextlib.asynccontextmanager
async def answering(upstreams, answer=ACCEPTED):
    """All of them answer meanwhile."""
    async with contextlib.AsyncExitStack() as stack:
        for upstream in upstreams:
            await stack.enter_async_context(upstream.answering(answer))
        yield


def test_where_a_connect_fails_the_next_upstream_is_tried(io_driver):
    async def scenario(gateway):
        dead.stop()
        async with good.answering():
            assert [await status(gateway) for _ in range(6)] == [101] * 6
        good.stop()
        assert [await status(gateway) for _ in range(2)] == [502] * 2

    with listening(2) as (dead, good):
        metrics = relay(io_driver, route(dead, good), scenario)
    refused = metrics.value("upstream_connects_total", result="refused")
    # At least every other client meets the dead one first; the last two meet both.
    assert 3 + 4 <= refused <= 6 + 4, refused
    assert connects(metrics) == {"refused": refused, "opened": 6}
    assert ends(metrics) == {"closed": 6, "upstream_unavailable": 2}


def test_an_upstream_that_fails_is_ejected_and_one_trial_brings_it_back(io_driver):
    """While it is ejected nobody meets it, and all go to the other."""

    async def scenario(gateway):
        def value(name, **labels):
            return gateway.metrics().value(name, route="chat", **labels)

        def is_healthy():
            return value("upstream_healthy", upstream=bad.url)

        bad.stop()
        async with good.answering():
            assert [await status(gateway) for _ in range(8)] == [101] * 8
            assert (is_healthy(), value("upstream_connects_total", result="refused")) == (0, 2)

            # A trial that fails prolongs the ejection.
            async def has_failed_again():
                assert await status(gateway) == 101
                return value("upstream_connects_total", result="refused") == 3

            await until(has_failed_again, "a trial")
            assert [await status(gateway) for _ in range(4)] == [101] * 4
            assert (is_healthy(), value("upstream_connects_total", result="refused")) == (0, 3)

            with Upstream(port=bad.port) as again:

                async def connects_again():
                    client = await Connection.open(gateway.ports["a"])
                    await client.send(HEAD)
                    await settle(gateway)
                    peer = await again.take_now()
                    if peer:
                        return client, peer
                    async with client:
                        assert (await client.response()).status == 101
                        await client.close()
                    return None

                client, peer = await until(connects_again, "a trial that connects")
                async with client, peer:
                    # Nobody else is sent there while it is under way.
                    assert [await status(gateway) for _ in range(4)] == [101] * 4
                    assert not await again.is_asked()
                    assert is_healthy() == 0
                    await peer.head()
                    await peer.send(ACCEPTED)
                    assert (await client.response()).status == 101
                    assert is_healthy() == 1
                    async with again.answering():
                        count = again.count
                        assert [await status(gateway) for _ in range(4)] == [101] * 4
                        assert again.count > count

    with listening(2) as (bad, good):
        routes = route(bad, good, eject_after=2, eject_for_ms=500, slow_start_ms=0)
        metrics = relay(io_driver, routes, scenario)
    assert metrics.value("upstream_ejections_total", upstream=bad.url) == 1
    assert metrics.value("upstream_ejections_total", upstream=good.url) == 0
    assert set(connects(metrics)) == {"refused", "opened"}


def test_the_last_upstream_in_use_is_not_ejected(io_driver):
    async def scenario(gateway):
        first.stop()
        second.stop()
        assert [await status(gateway) for _ in range(6)] == [502] * 6
        with Upstream(port=first.port) as again:
            async with again.answering():
                assert await status(gateway) == 101

    with listening(2) as (first, second):
        metrics = relay(io_driver, route(first, second, eject_after=1, eject_for_ms=60000), scenario)
    assert metrics.value("upstream_ejections_total") == 1


def test_a_trial_whose_client_leaves_is_followed_by_another(io_driver):
    async def scenario(gateway):
        bad.stop()
        async with good.answering():
            assert [await status(gateway) for _ in range(4)] == [101] * 4
            with Upstream(port=bad.port) as again:

                async def is_tried():
                    async with await Connection.open(gateway.ports["a"]) as client:
                        await client.send(HEAD)
                        await settle(gateway)
                        peer = await again.take_now()
                        if peer:
                            client.reset()
                            await peer.gone()
                            await peer.__aexit__()
                        else:
                            assert (await client.response()).status == 101
                            await client.close()
                        return peer

                await until(is_tried, "a trial")
                async with again.answering():
                    count = again.count
                    assert [await status(gateway) for _ in range(4)] == [101] * 4
                    assert again.count > count

    with listening(2) as (bad, good):
        limits = {"eject_after": 1, "eject_for_ms": 300, "handshake_timeout_ms": 10000, "slow_start_ms": 0}
        metrics = relay(io_driver, route(bad, good, **limits), scenario)
    assert connects(metrics)["abandoned"] == 1
    assert ends(metrics)["client_gone"] == 1


def test_beyond_its_connections_an_upstream_gets_no_client(io_driver):
    async def scenario(gateway):
        async with upstream.answering():
            clients = [await (await Connection.open(gateway.ports["a"])).accepted(HEAD) for _ in range(2)]
            assert [await status(gateway) for _ in range(3)] == [503] * 3
            for client in clients:
                async with client:
                    await client.echo(b"undisturbed")
                    await client.close()
                await until(lambda: is_answered(gateway, 101), "room again")

    async def is_answered(gateway, expected):
        return await status(gateway) == expected

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream, connections_max=2), scenario)
    assert connects(metrics)["full"] >= 3 and connects(metrics)["opened"] == 4
    assert ends(metrics)["closed"] == 4


def test_beyond_the_connections_that_are_being_made_an_upstream_gets_no_client(io_driver):
    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as first:
            await first.send(HEAD)
            async with await upstream.take() as peer:
                await peer.head()
                assert [await status(gateway) for _ in range(3)] == [503] * 3
                await peer.send(ACCEPTED)
                assert (await first.response()).status == 101
                async with upstream.answering():
                    assert await status(gateway) == 101

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream, connecting_max=1), scenario)
    assert connects(metrics) == {"full": 3, "opened": 2}


def test_a_full_upstream_is_passed_over(io_driver):
    async def scenario(gateway):
        async with answering(upstreams):
            clients = [await (await Connection.open(gateway.ports["a"])).accepted(HEAD) for _ in range(6)]
            assert [upstream.count for upstream in upstreams] == [2, 2, 2]
            assert await status(gateway) == 503
            for client in clients:
                async with client:
                    await client.close()

    with listening(3) as upstreams:
        metrics = relay(io_driver, route(*upstreams, connections_max=2), scenario)
    assert connects(metrics) == {"full": 1, "opened": 6}


def test_round_robin_gives_each_its_turn(io_driver):
    async def scenario(gateway):
        async with answering(upstreams):
            assert [await status(gateway) for _ in range(30)] == [101] * 30

    with listening(3) as upstreams:
        relay(io_driver, route(*upstreams), scenario)
    assert [upstream.count for upstream in upstreams] == [10, 10, 10]


def test_least_connections_fills_up_where_there_are_few(io_driver):
    async def scenario(gateway):
        async def come(count):
            return [await (await Connection.open(gateway.ports["a"])).accepted(HEAD) for _ in range(count)]

        async with answering(upstreams):
            clients = await come(9)
            assert [upstream.count for upstream in upstreams] == [3, 3, 3]
            # Those of one leave, and the next ones go there.
            leaving = {index: client for index, client in enumerate(clients) if index % 3 == 0}
            for client in leaving.values():
                async with client:
                    await client.close()
            wait_until(lambda: gateway.metrics().value("upstream_connections_active") == 6, "three have left")
            active = gateway.metrics().by("upstream", "upstream_connections_active")
            before = [upstream.count for upstream in upstreams]
            late = await come(3)
            gained = [upstream.count - count for upstream, count in zip(upstreams, before, strict=True)]
            assert gained == [3 - active.get(upstream.url, 0) for upstream in upstreams]
            for client in [*late, *clients]:
                if client not in leaving.values():
                    async with client:
                        await client.close()

    with listening(3) as upstreams:
        relay(io_driver, route(*upstreams, keys='balance = "least_connections"'), scenario)


STICKY = {
    "cookie:session": lambda value: {"cookie": f"a=b; session={value}; sessions=x"},
    "header:X-Room": lambda value: {"x_room": value},
    "address": lambda value: {"x_forwarded_for": f"192.0.2.{value}"},
}


@pytest.mark.parametrize("balance", STICKY)
def test_a_sticky_client_stays_and_moves_only_while_its_upstream_is_away(io_driver, balance):
    async def homes(gateway, live):
        """The upstream of each of forty clients, which come twice."""
        found = {}
        for value in [*range(1, 41), *range(1, 41)]:
            before = [upstream.count for upstream in live]
            assert await status(gateway, **STICKY[balance](str(value))) == 101
            (home,) = (
                upstream.port for upstream, count in zip(live, before, strict=True) if upstream.count == count + 1
            )
            assert found.setdefault(value, home) == home, f"client {value} moved"
        return found

    async def scenario(gateway):
        lost, *rest = upstreams
        async with answering(rest):
            async with lost.answering():
                at_first = await homes(gateway, upstreams)
            assert len(set(at_first.values())) == 3, at_first
            lost.stop()
            meanwhile = await homes(gateway, rest)
            for value, home in at_first.items():
                assert meanwhile[value] == home or home == lost.port, f"client {value} moved for nothing"
            with Upstream(port=lost.port) as again:
                async with again.answering():
                    assert await homes(gateway, [again, *rest]) == at_first

    with listening(3) as upstreams:
        keys = f'balance = "{balance}"\ntrusted = ["127.0.0.1"]'
        relay(io_driver, route(*upstreams, keys=keys), scenario)


HEALTH = "health = {{ kind = {}, interval_ms = 100, unhealthy_after = 2, healthy_after = 2 }}"
KINDS = {"tcp": '"tcp"', "http": '"http", path = "/health?a=b"', "websocket": '"websocket", path = "/health?a=b"'}
# What the status says of each, when a check has failed.
FAULTS = {"tcp": "connecting failed", "http": "answered 404", "websocket": "answered 404, not 101"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_upstream_whose_checks_fail_is_passed_over_until_they_succeed(io_driver, kind):
    """What it would tell a client does not matter: it would accept each of them."""
    is_well = True

    def answer_well(line, fields):
        if line == "GET /health?a=b HTTP/1.1" and kind == "http":
            return b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 302 Found\r\n\r\n"
        return accepted(fields)

    def answer(line, fields):
        return NOT_FOUND if line.startswith("GET /health") and not is_well else answer_well(line, fields)

    async def scenario(gateway):
        nonlocal is_well

        # Each of the two routes makes checks of its own.
        async def is_healthy():
            return gateway.metrics().value("upstream_healthy", upstream=watched.url) == 2

        async def is_unhealthy():
            return gateway.metrics().value("upstream_healthy", upstream=watched.url) == 0

        async def serves(count):
            """So many clients of the route with the watched upstream alone are accepted."""
            assert [await status(gateway, path="/alone/x") for _ in range(count)] == [101] * count

        async def is_passed_over():
            await until(is_unhealthy, "checks fail")
            assert [await status(gateway, path="/alone/x") for _ in range(2)] == [503] * 2
            assert [await status(gateway) for _ in range(4)] == [101] * 4
            (fault,) = (shown["fault"] for shown in gateway.status()["upstreams"] if shown["route"] == "alone")
            assert FAULTS[kind if watched.is_listening else "tcp"] in fault, fault

        async with other.answering(answer_well):
            async with watched.answering(answer):
                await serves(2)
                if kind != "tcp":
                    is_well = False
                    await is_passed_over()
                    is_well = True
                    await until(is_healthy, "checks succeed")
                    await serves(2)
            watched.stop()
            await is_passed_over()
            with Upstream(port=watched.port) as again:
                async with again.answering(answer):
                    await until(is_healthy, "checks succeed")
                    await serves(2)
        # Or there would always be a check that waits for an answer, and holds a descriptor.
        other.stop()

    with listening(2) as (watched, other):
        keys = HEALTH.format(KINDS[kind])
        routes = route(watched, path="/alone/*", keys=keys) + route(watched, other, keys=keys)
        metrics = relay(io_driver, routes, scenario)
    times = 1 if kind == "tcp" else 2
    assert connects(metrics, "alone") == {"opened": 2 * times + 2, "unhealthy": 2 * times}
    assert connects(metrics) == {"opened": 4 * times}, "nothing was tried in vain"
    assert metrics.value("upstream_ejections_total") == 0


# A name server is not asked, whatever is set up here: /etc/hosts says all there is.
HOSTS_ALONE = 'mount --bind {hosts} /etc/hosts && mount --bind {nsswitch} /etc/nsswitch.conf && exec "$@"'


def test_a_name_is_followed_and_what_it_was_is_kept_while_it_cannot_be_resolved(io_driver, tmp_path):
    """`/etc/hosts` of a mount namespace, which the test writes."""
    hosts, nsswitch = tmp_path / "hosts", tmp_path / "nsswitch.conf"
    nsswitch.write_text("hosts: files\n")
    wrapper = ["unshare", "--mount", "sh", "-c", HOSTS_ALONE.format(hosts=hosts, nsswitch=nsswitch), "sh"]

    async def scenario(gateway):
        async def ghost_appears():
            return await status(gateway, path="/ghost/x") == 101

        async def reaches(upstream):
            """Whether the next client does."""
            before = upstream.count
            assert await status(gateway) == 101
            return upstream.count > before

        async def is_unresolved():
            return '"name":"app.test:' in gateway.log() and "cannot be resolved" in gateway.log()

        async with await Connection.open(gateway.ports["a"]) as resident, second.answering():
            async with first.answering():
                assert await status(gateway, path="/ghost/x") == 502
                await resident.accepted(HEAD)
                hosts.write_text("127.0.0.1 localhost\n")
                await until(is_unresolved, "the name is gone")
                assert await reaches(first)

                hosts.write_text(f"{second.address} app.test ghost.test\n")
                await until(lambda: reaches(second), "the name has another address")
                await until(ghost_appears, "the other name has an address")
                assert [await reaches(second) for _ in range(3)] == [True] * 3
                # Who is connected stays where it was.
                await resident.echo(b"moved?")
                await resident.close()

                hosts.write_text(f"{first.address} app.test\n{second.address} app.test\n")
                await until(lambda: reaches(first), "the name has both addresses")
            first.stop()
            # Of two addresses one that fails is no fault of the upstream's, and no client's affair.
            assert [await status(gateway) for _ in range(6)] == [101] * 6
            assert gateway.metrics().value("upstream_ejections_total") == 0

    with Upstream(address="127.0.0.2") as first, Upstream(address="127.0.0.3", port=first.port) as second:
        hosts.write_text(f"{first.address} app.test\n")
        app, ghost = (f"ws://{name}.test:{first.port}" for name in ("app", "ghost"))
        routes = route(app, eject_after=1) + route(ghost, path="/ghost/*")
        metrics = relay(io_driver, routes, scenario, wrapper=wrapper)
    assert connects(metrics, "ghost")["unresolved"] >= 1
    assert metrics.by("end", "connections_ended_total", port="a").keys() == {"closed", "upstream_unavailable"}
