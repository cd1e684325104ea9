# SPDX-License-Identifier: Apache-2.0
"""What the fleet's alerts tell people, seen by a web hook that Alertmanager calls: who is paged, of what, and after how many seconds.

``QUICK`` multiplies every ``for`` of the rules by a twentieth (``prometheus_alert_patience``); scrapes, evaluations and Alertmanager's waits are short as
well. The time to a page in production follows: the alert's own ``for``, up to a scrape and an evaluation, and ``alertmanager_group_wait``.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from fleet import ROOT, Fleet

QUICK: dict[str, t.Any] = {
    "alertmanager_watchdog_repeat_interval": "5s",
    "alertmanager_group_wait": "5s",
    "alertmanager_group_interval": "5s",
    "prometheus_scrape_interval": "2s",
    "prometheus_scrape_timeout": "2s",
    "prometheus_evaluation_interval": "2s",
    "prometheus_alert_patience": 0.05,
    # How long a cause goes on: two health checks of the gateway (3 s each), a scrape, an evaluation, and a busy machine.
    "prometheus_alert_hold_seconds": 20,
}
FIRING, RESOLVED = "firing", "resolved"


@dataclass(frozen=True)
class Told:
    """An alert within a notification: when it came (seconds since 1970), whether it fires, and its labels."""

    at: float
    state: str
    labels: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the alert."""
        return self.labels.get("alertname", "")

    @property
    def host(self) -> str:
        """The host that it is about; empty for one about a region."""
        return self.labels.get("host", "")


class Pages:
    """A web hook on the controller's address in the lab, to which the lab's Alertmanager sends everything.

    :arg fleet: the lab, converged.
    :arg folder: directory for the file of notifications.
    :arg settings: variables of the monitor meanwhile.
    :arg seconds: how long the web hook lives.
    """

    def __init__(
        self, fleet: Fleet, folder: Path, settings: t.Mapping[str, t.Any] | None = None, seconds: int = 3600
    ) -> None:
        self.fleet = fleet
        self.file = folder / "notifications.jsonl"
        self.settings = QUICK if settings is None else settings
        self.seconds = seconds
        self.since = time.time()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Pages:
        address = str(ipaddress.ip_network(str(next(iter(self.fleet.vars.values()))["lab_subnet"]))[1])
        self.file.touch()
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "tests" / "mock" / "webhook_receiver.py"),
                address,
                "0",
                str(self.file),
                str(self.seconds),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().split()[1]
        # A name that was never told anything: to another one, what an earlier run has left firing is no news for hours.
        name = f"tests-{time.time():.0f}"
        try:
            self._configure(
                alertmanager_receivers=[{"name": name, "kind": "webhook", "url": f"http://{address}:{port}/"}],
                alertmanager_watchdog_receiver=name,
                **self.settings,
            )
            self.mark()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_unused: object) -> None:
        try:
            self._configure()
        finally:
            if self._process:
                self._process.terminate()
                self._process.wait(timeout=10)

    def _configure(self, **variables: t.Any) -> None:
        run = self.fleet.play(
            "playbooks/monitoring.yml",
            "--limit",
            "monitors",
            "--tags",
            "alertmanager,prometheus",
            "-e",
            json.dumps(variables),
            timeout=300,
        )
        assert run.rc == 0, run.output

    def mark(self) -> None:
        """From now on: what came before is forgotten, and seconds are counted from here."""
        self.since = time.time()

    def told(self) -> list[Told]:
        """Every alert of every notification since the mark, in the order of their arrival."""
        lines = [json.loads(line) for line in self.file.read_text("utf-8").splitlines()]
        return [
            Told(line["at"], alert["status"], alert["labels"])
            for line in lines
            if line["at"] >= self.since
            for alert in line["body"]["alerts"]
        ]

    def paged(self) -> set[tuple[str, str]]:
        """Name and host of every alert that woke somebody since the mark."""
        return {
            (one.name, one.host) for one in self.told() if one.state == FIRING and one.labels.get("severity") == "page"
        }

    def wait_for(self, alertname: str, host: str = "", state: str = FIRING, seconds: float = 60) -> float:
        """Wait until an alert was told.

        :arg host: the host that it must be about; empty for any.
        :arg state: ``firing`` or ``resolved``.
        :returns: seconds from the mark to its arrival.
        :raises AssertionError: it was not told within so many seconds.
        """
        end = time.time() + seconds
        while True:
            for one in self.told():
                if one.name == alertname and one.state == state and host in ("", one.host):
                    print(f"{alertname} {host} {state} after {one.at - self.since:.1f} s", flush=True)
                    return one.at - self.since
            if time.time() > end:
                seen = [f"{one.name} {one.host} {one.state}" for one in self.told() if one.name != "Watchdog"]
                raise AssertionError(f"{alertname} {host} {state}: not told within {seconds} s, but {seen}")
            time.sleep(0.3)
