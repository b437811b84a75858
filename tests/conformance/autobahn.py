"""Autobahn's fuzzing client against `/echo`, with TLS and without, and against a server behind a relay: 301 cases."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections import Counter
from itertools import repeat
from pathlib import Path

from authority import tls_of
from harness import Gateway
from peers import NodeServer

WSTEST = os.environ.get("RINGWAY_WSTEST", "wstest")

# All but permessage-deflate, which is 12.* and 13.*.
EXCLUDED = ["12.*", "13.*"]
CASE_COUNT = 301

# What a server that keeps every rule of RFC 6455 may show. NON-STRICT: it found the fault later than it could have.
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}

# What a report says about a case, but for how long it took and where more is to be read.
VERDICT = ["behavior", "behaviorClose", "remoteCloseCode"]

# An outer frame of 16 MiB is the largest that a case sends.
CONFIG = """
[gateway]
shards = 1
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
{tls}
[[route]]
path = "/echo"
"""
ECHO = CONFIG + 'service = "echo"'


def test_every_case_passes(authority, io_driver, tmp_path):
    with Gateway(ECHO.format(tls=tls_of(authority)), io_driver=io_driver) as gateway:
        scheme = "wss" if authority else "ws"
        reports = fuzz(f"{scheme}://127.0.0.1:{gateway.ports['a']}/echo", io_driver, tmp_path)
        metrics = gateway.at_rest()
        assert metrics.value("tls_failures_total") == 0
        # Each case is a connection.
        assert metrics.value("tls_handshakes_total", port="a") == (CASE_COUNT if authority else 0)

    behaviours = Counter(report["behavior"] for report in reports.values())
    closes = Counter(report["behaviorClose"] for report in reports.values())
    print(f"{len(reports)} cases over {scheme} on {io_driver}: {dict(behaviours)}; closing: {dict(closes)}")
    for case, report in sorted(reports.items()):
        if "NON-STRICT" in (report["behavior"], report["behaviorClose"]):
            print(f"NON-STRICT: {case}")

    bad = {
        case: (report["behavior"], report["behaviorClose"])
        for case, report in reports.items()
        if report["behavior"] not in GOOD or report["behaviorClose"] not in GOOD
    }
    assert not bad
    assert len(reports) == CASE_COUNT


def test_a_relay_changes_no_verdict(tmp_path):
    """On either driver, for better or for worse: npm's ws behind it is judged as it is by itself."""
    server = NodeServer(False, tmp_path)
    config = f'{CONFIG.format(tls="")}service = "websocket"\nupstreams = ["{server.upstream}"]'

    async def fuzz_each(urls):
        async with server:
            folders = [tmp_path / name for name in urls]
            for folder in folders:
                folder.mkdir()
            fuzzing = map(asyncio.to_thread, repeat(fuzz), urls.values(), urls, folders)
            return dict(zip(urls, await asyncio.gather(*fuzzing), strict=True))

    with contextlib.ExitStack() as stack:
        gateways = {driver: stack.enter_context(Gateway(config, io_driver=driver)) for driver in ("io_uring", "epoll")}
        urls = {driver: f"ws://127.0.0.1:{gateway.ports['a']}/echo" for driver, gateway in gateways.items()}
        for gateway in gateways.values():
            stack.enter_context(gateway.leaving_nothing())
        reports = asyncio.run(fuzz_each({"direct": f"{server.upstream}/echo", **urls}))
        for gateway in gateways.values():
            assert gateway.at_rest().by("result", "upstream_connects_total") == {"opened": CASE_COUNT}

    direct = reports["direct"]
    print(f"directly: {dict(Counter(report['behavior'] for report in direct.values()))}")
    assert len(direct) == CASE_COUNT
    for driver in gateways:
        relayed = reports[driver]
        assert relayed.keys() == direct.keys()
        assert not {case: (was, now) for case, was in direct.items() if (now := relayed[case]) != was}, driver


def fuzz(url, agent, folder: Path, cases=("*",), excluded=EXCLUDED, timeout_s=280):
    """Runs the fuzzing client and returns its report of each case."""
    specification = folder / "fuzzingclient.json"
    specification.write_text(
        json.dumps(
            {
                "outdir": str(folder),
                "servers": [{"agent": agent, "url": url}],
                "cases": list(cases),
                "exclude-cases": excluded,
                "exclude-agent-cases": {},
            }
        )
    )
    command = [WSTEST, "--mode", "fuzzingclient", "--spec", str(specification)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    reports = json.loads((folder / "index.json").read_text())[agent]
    return {case: {key: report[key] for key in VERDICT} for case, report in reports.items()}
