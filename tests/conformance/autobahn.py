"""Autobahn's fuzzing client against `/echo`, on io_uring and on epoll: all 301 cases of RFC 6455 itself."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

from harness import Gateway

WSTEST = os.environ.get("RINGWAY_WSTEST", "wstest")

# All but permessage-deflate, which is 12.* and 13.*.
EXCLUDED = ["12.*", "13.*"]
CASE_COUNT = 301

# What a server that keeps every rule of RFC 6455 may show. NON-STRICT: it found the fault later than it could have.
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}

# An outer frame of 16 MiB is the largest that a case sends.
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


def test_every_case_passes(io_driver, tmp_path):
    with Gateway(CONFIG, io_driver=io_driver) as gateway:
        reports = fuzz(f"ws://127.0.0.1:{gateway.ports['a']}/echo", io_driver, tmp_path)
        gateway.at_rest()

    behaviours = Counter(report["behavior"] for report in reports.values())
    closes = Counter(report["behaviorClose"] for report in reports.values())
    print(f"{len(reports)} cases on {io_driver}: {dict(behaviours)}; closing: {dict(closes)}")
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


def fuzz(url, agent, folder: Path):
    """Runs the fuzzing client and returns its report of each case."""
    specification = folder / "fuzzingclient.json"
    specification.write_text(
        json.dumps(
            {
                "outdir": str(folder),
                "servers": [{"agent": agent, "url": url}],
                "cases": ["*"],
                "exclude-cases": EXCLUDED,
                "exclude-agent-cases": {},
            }
        )
    )
    command = [WSTEST, "--mode", "fuzzingclient", "--spec", str(specification)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return json.loads((folder / "index.json").read_text())[agent]
