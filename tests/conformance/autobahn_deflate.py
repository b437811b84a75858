"""Autobahn's cases of permessage-deflate, 216 of them: an echo that keeps contexts and one that keeps none, and a relay
that compresses for a server which does not."""

import asyncio
from collections import Counter

import pytest

from autobahn import CONFIG, GOOD, fuzz
from harness import Gateway
from peers import NodeServer

CASES = ["12.*", "13.*"]
CASE_COUNT = 216
# Most of that is what the fuzzing client itself takes.
TIMEOUT_S = 1800

pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)

ECHO = 'service = "echo"\ndeflate = {{ mode = "{mode}" }}'
RELAY = 'service = "websocket"\nupstreams = ["{upstream}"]\ndeflate = {{ mode = "{mode}" }}'


@pytest.mark.parametrize(("mode", "io_driver"), [("shared", "io_uring"), ("dedicated", "epoll")])
def test_every_case_of_an_echo_passes(mode, io_driver, tmp_path):
    with Gateway(CONFIG.format(tls="") + ECHO.format(mode=mode), io_driver=io_driver) as gateway:
        reports = fuzz(f"ws://127.0.0.1:{gateway.ports['a']}/echo", io_driver, tmp_path, CASES, [], TIMEOUT_S)
        judge(reports)
        metrics = gateway.at_rest()
        assert metrics.value("deflate_context_bytes", port="a") == 0
        by_form = metrics.by("form", "deflate_bytes_total", direction="received")
        print(f"{mode} on {io_driver}: {by_form['plain'] / by_form['compressed']:.2f} times smaller as they came")
        assert by_form["plain"] > by_form["compressed"] > 0
        assert metrics.value("violations_total") == 0


@pytest.mark.parametrize(("mode", "io_driver"), [("dedicated", "io_uring"), ("shared", "epoll")])
def test_every_case_passes_to_a_server_that_does_not_compress(mode, io_driver, tmp_path):
    server = NodeServer(False, tmp_path)

    async def run(url):
        async with server:
            return await asyncio.to_thread(fuzz, url, io_driver, tmp_path, CASES, [], TIMEOUT_S)

    config = CONFIG.format(tls="") + RELAY.format(mode=mode, upstream=server.upstream)
    with Gateway(config, io_driver=io_driver) as gateway:
        judge(asyncio.run(run(f"ws://127.0.0.1:{gateway.ports['a']}/echo")))
        metrics = gateway.at_rest()
        assert metrics.by("result", "upstream_connects_total") == {"opened": CASE_COUNT}
        assert metrics.value("deflate_context_bytes", port="a") == 0


def judge(reports):
    """No case may fail, and none may pass because nothing was agreed on."""
    behaviours = Counter(report["behavior"] for report in reports.values())
    print(f"{len(reports)} cases: {dict(behaviours)}")
    assert len(reports) == CASE_COUNT
    bad = {case: report for case, report in reports.items() if report["behavior"] not in GOOD}
    assert not bad
    assert not {case: report for case, report in reports.items() if report["behaviorClose"] not in GOOD}
    assert set(behaviours) == {"OK"}
