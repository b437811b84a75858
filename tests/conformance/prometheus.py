"""A real Prometheus that scrapes a gateway, as a context manager, and its query API."""

import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from harness import free_port, wait_until

PROMETHEUS = os.environ.get("RINGWAY_PROMETHEUS", "prometheus")
PROMTOOL = os.environ.get("RINGWAY_PROMTOOL", "promtool")

CONFIG = """
scrape_configs:
  - job_name: ringway
    scrape_interval: 1s
    scrape_timeout: 1s
    static_configs:
      - targets: ["127.0.0.1:{admin}"]
"""


class Prometheus:
    """Scrapes the gateway's admin endpoint every second, from entry to exit."""

    def __init__(self, admin):
        self.admin = admin
        self.port = free_port()

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="ringway-prometheus-")
        folder = Path(self._folder.name)
        (folder / "prometheus.yml").write_text(CONFIG.format(admin=self.admin))
        self._log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--", PROMETHEUS),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(self._scrapes, "Prometheus has scraped the gateway")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception):
        self.process.kill()
        self.process.wait()
        self._log.close()
        self._folder.cleanup()

    def query(self, expression):
        """The instant vector or matrix that the expression yields: a list of its elements."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(url, timeout=20) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def counts(self, expression, *labels):
        """The non-zero whole numbers that the expression yields, by the values of these labels."""
        return {
            tuple(element["metric"][label] for label in labels): int(element["value"][1])
            for element in self.query(expression)
            if element["value"][1] != "0"
        }

    def wait_for_scrape_after(self, time_s):
        """Waits until a scrape that began after this Unix time is stored."""
        # Not of `up == 1`, which is a sample of the moment of the query.
        wait_until(
            lambda: any(float(element["value"][1]) > time_s for element in self.query('timestamp(up{job="ringway"})')),
            "Prometheus has scraped again",
        )

    def _scrapes(self):
        if self.process.poll() is not None:
            self._log.seek(0)
            raise AssertionError(f"Prometheus ended:\n{self._log.read()}")
        try:
            return self.query('up{job="ringway"} == 1')
        except (urllib.error.URLError, ConnectionError):
            return False


def check_metrics(text):
    """What `promtool check metrics` finds fault with, as it says it."""
    run = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True)
    return run.stdout + run.stderr + (f"exit {run.returncode}" if run.returncode else "")
