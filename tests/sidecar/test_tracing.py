# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""One trace from client to engine: the gateway's spans over HTTP, Envoy's over gRPC, at one receiver."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import otlp_collector
import pytest
from gatewaytools import Engine, Gateway
from otlp_collector import Collector
from sidecartools import Sidecar

Start = Callable[..., Sidecar]
Ahead = Callable[..., Gateway]
TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(name="collector")
def make_collector() -> Iterator[Collector]:
    """A receiver of spans."""
    with otlp_collector.running() as made:
        yield made


def test_gateway_and_sidecar_make_one_trace(
    gateway: Ahead, sidecar: Start, engine: Engine, collector: Collector
) -> None:
    beside = sidecar(
        engine,
        otlp_endpoint=f"127.0.0.1:{collector.grpc}",
        otlp_service_name="envoy_sidecar",
        # The gateway's word counts, and not this.
        otlp_sampling_percent=0,
    )

    def traced(made: Gateway) -> None:
        made.collector, made.tracing = collector.http, {"gateway_tracing_sampling_percent": 0}

    ahead = gateway([beside], traced)
    assert ahead.chat(headers={"traceparent": f"00-{TRACE}-{CLIENT}-01"}, stream=True).status == 200
    found = {
        (span.service, span.kind): span
        for span in collector.until(lambda spans: len([span for span in spans if span.trace == TRACE]) >= 4)
    }
    chain = [found[service, kind] for service in ("gateway", "envoy_sidecar") for kind in (2, 3)]
    assert {span.trace for span in collector.spans} == {TRACE}
    assert len(collector.spans) == len(chain)
    # Client, gateway, its call, Envoy, its call, engine: each is the parent of the next.
    assert [span.parent for span in chain] == [CLIENT, *(span.id for span in chain[:-1])]
    assert engine.stats()["last_headers"]["traceparent"].split("-")[1:] == [TRACE, chain[-1].id, "01"]
    # Each lies within the one above it, but for the clocks: nginx's has milliseconds.
    for outer, inner in zip(chain, chain[1:]):
        assert outer.begin - 20_000_000 <= inner.begin
        assert inner.end <= outer.end + 20_000_000
    # Who is not to be recorded is not, on the whole way.
    other = "a" * 32
    assert ahead.chat(headers={"traceparent": f"00-{other}-{CLIENT}-00"}).status == 200
    assert ahead.chat(headers={"traceparent": f"00-{'b' * 32}-{CLIENT}-01"}).status == 200
    collector.until(lambda spans: len([span for span in spans if span.trace == "b" * 32]) == 4)
    assert collector.of(other) == []
