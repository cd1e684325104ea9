# SPDX-License-Identifier: Apache-2.0
"""The gateway's limits in front of real engines, and what people do to its peers."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator

import pytest
from fleet import Fleet, Load, wait_for

VISITOR = "visitor-of-the-lab"
DRAIN = "playbooks/drain.yml"


class Client:
    """A tenant with one connection."""

    def __init__(self, fleet: Fleet, key: str) -> None:
        context = ssl.create_default_context(cafile=str(fleet.state / "pki" / "ca.crt"))
        gateway = fleet.vars[fleet.groups["gateways"][0]]["ansible_host"]
        self.link = http.client.HTTPSConnection(gateway, 443, timeout=60, context=context)
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def send(self, max_tokens: int = 1, stream: bool = False, **more: bool) -> http.client.HTTPResponse:
        """One completion without waiting for its end."""
        body = {
            "messages": [{"role": "user", "content": "Count to ten"}],
            "max_tokens": max_tokens,
            "stream": stream,
            **more,
        }
        self.link.request("POST", "/v1/chat/completions", json.dumps(body), self.headers)
        return self.link.getresponse()


def status_of(fleet: Fleet) -> dict[str, dict[str, float]]:
    """What the status page says of each tenant: used requests, tokens, and requests at the same time."""
    page = json.loads(fleet.ssh("gw1", "curl -s http://127.0.0.1:8090/status.json").stdout)
    return {one["id"]: {kind: one[kind]["used"] for kind in ("rpm", "tpm", "concurrency")} for one in page["tenants"]}


@pytest.fixture
def gateway(fleet: Fleet) -> Iterator[Fleet]:
    """A gateway that has forgotten what was used, with both peers in service afterwards."""
    fleet.ssh("gw1", "systemctl restart nginx")
    yield fleet
    fleet.ssh("gw1", "rm -rf /etc/gpufleet/gateway/holds /etc/gpufleet/gateway/weights")
    run = fleet.play("playbooks/gateway.yml")
    assert run.rc == 0, run.output


def test_a_visitor_gets_what_the_tier_allows_and_no_more(gateway: Fleet) -> None:
    """Ten requests a minute and three in any second, of a real engine; a refusal says when to come back."""
    client = Client(gateway, VISITOR)
    answers = []
    begun = time.monotonic()
    while time.monotonic() < begun + 8:
        sent = time.monotonic()
        answer = client.send()
        body = json.loads(answer.read())
        answers.append(((sent, time.monotonic()), answer.status, answer.getheader("Retry-After"), body))
        time.sleep(0.05)
    good = [moments for moments, status, _after, _body in answers if status == 200]
    assert len(good) == 10
    assert {status for _moments, status, _after, _body in answers} == {200, 429}
    # The gateway counts a request somewhere between its sending and its answer.
    assert all(later[1] - earlier[0] >= 1 for earlier, later in zip(good, good[3:]))
    refused = [(after, body) for _moments, status, after, body in answers if status == 429]
    assert all(int(after or 0) >= 1 and body["error"]["code"] == "rate_limit_exceeded" for after, body in refused)
    assert status_of(gateway)["visitor"]["rpm"] == 10


def test_tokens_are_settled_by_what_the_engine_counted(gateway: Fleet) -> None:
    """Reserved are the prompt's estimate and max_tokens; what stays is the usage, which the client did not ask for and does not see."""
    answer = Client(gateway, VISITOR).send(max_tokens=200, stream=True)
    events = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert (answer.status, events[-1]) == (200, "[DONE]")
    chunks = [json.loads(event) for event in events[:-1]]
    assert not any(chunk.get("usage") for chunk in chunks)
    pieces = sum(bool(chunk["choices"] and chunk["choices"][0]["delta"].get("content")) for chunk in chunks)
    used = status_of(gateway)["visitor"]
    assert used["concurrency"] == 0
    # The prompt in the model's own words, and an answer of about as many tokens as there were chunks.
    assert pieces <= used["tpm"] <= pieces + 60, (pieces, used)


def test_a_client_that_goes_away_leaves_nothing(gateway: Fleet) -> None:
    client = Client(gateway, VISITOR)
    # The engine must not end the answer by itself before the gateway was asked.
    answer = client.send(max_tokens=250, stream=True, ignore_eos=True)
    assert answer.status == 200
    answer.readline()
    assert status_of(gateway)["visitor"]["concurrency"] == 1
    client.link.sock.close()
    answer.close()
    wait_for("the place is free", lambda: status_of(gateway)["visitor"]["concurrency"] == 0, 15)
    assert 0 < status_of(gateway)["visitor"]["tpm"] < 250


def test_drain_yml(gateway: Fleet) -> None:
    """Check, run, run: out of service without a failed request, in again, and with another weight for a while."""
    wanted = ("-e", "drain_host=gpu2", "-e", "drain_reason='fans are replaced'")
    check = gateway.play(DRAIN, *wanted, "--check")
    assert check.rc == 0, check.output
    assert "How it would be:" in check.output
    with Load(gateway, clients=3, seconds=12) as load:
        time.sleep(2)
        run = gateway.play(DRAIN, *wanted)
        drained = time.monotonic()
    assert run.rc == 0, run.output
    assert run.changed() > 0
    assert [answer for answer in load.answers if answer.status != 200] == []
    assert {answer.peer for answer in load.answers if answer.start > drained} <= {"gpu1"}
    assert {gateway.ask()[2] for _unused in range(6)} == {"gpu1"}
    again = gateway.play(DRAIN, *wanted)
    assert (again.rc, again.changed()) == (0, 0), again.output
    words = " ".join(again.output.split())
    assert "gpu2 gw1 held" in words

    run = gateway.play(DRAIN, "-e", "drain_host=gpu2", "-e", "drain_state=admitted")
    assert run.rc == 0, run.output
    wait_for("gpu2 answers again", lambda: "gpu2" in {gateway.ask()[2] for _unused in range(10)}, 30)

    run = gateway.play(DRAIN, "-e", "drain_host=gpu2", "-e", "drain_state=weighed", "-e", "drain_weight=3", *wanted[2:])
    assert run.rc == 0, run.output
    kept = gateway.play("playbooks/gateway.yml")
    assert (kept.rc, kept.changed()) == (0, 0), kept.output
    assert "gpu2 has the weight 3" in " ".join(kept.output.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("drain_host=gpu9", "drain_reason=x"), "drain_host: expected one of gpu1, gpu2, found gpu9"),
        (("drain_host=gpu2",), "drain_reason: expected words that say why"),
        (("drain_host=gpu2", "drain_state=gone"), "drain_state: expected drained, admitted or weighed, found gone"),
        (("drain_host=gpu1,gpu2", "drain_reason=x"), "expected at least 33 percent"),
    ],
)
def test_drain_yml_refuses(fleet: Fleet, words: tuple[str, ...], says: str) -> None:
    run = fleet.play(DRAIN, *(part for word in words for part in ("-e", word)))
    assert run.rc != 0
    assert says in " ".join(run.output.split())
    assert run.changed() == 0
    assert fleet.ssh("gw1", "ls /etc/gpufleet/gateway/holds 2>/dev/null", check=False).stdout == ""
