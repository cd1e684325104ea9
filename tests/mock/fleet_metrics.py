# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Metrics pages of a made-up fleet, for tests of dashboards and of the status page: standard library only.

Every page is one of a real exporter's by its names and labels; the values are invented and move on with the clock. GPUs carry the label simulated="true".

    fleet_metrics.py --port 9900 [--hosts 5]

  GET /HOST/JOB    the page of a target; labels of targets are in :func:`scrape_config`
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENGINES = ("vllm", "vllm", "sglang", "tensorrt_llm", "llama_cpp")
TTFT = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
GPUS = 8
GIB = 1 << 30
# An hour of life before the first scrape, so that no counter is born while it is watched.
AGE = 3600.0


def line(name: str, value: float, **labels: object) -> str:
    """One sample."""
    text = ",".join(f'{key}="{one}"' for key, one in labels.items())
    return f"{name}{{{text}}} {value:.6f}" if text else f"{name} {value:.6f}"


def histogram(
    name: str, buckets: Iterable[float], middle: float, rate: float, age: float, **labels: object
) -> Iterator[str]:
    """A log-normal spread around a median, growing with age."""
    total = rate * age
    for bound in buckets:
        share = 0.5 * (1 + math.erf(math.log(bound / middle) / (0.7 * math.sqrt(2))))
        yield line(f"{name}_bucket", total * share, **labels, le=f"{bound:g}")
    yield line(f"{name}_bucket", total, **labels, le="+Inf")
    yield line(f"{name}_sum", total * middle * 1.28, **labels)
    yield line(f"{name}_count", total, **labels)


class Fleet:
    """The hosts and what their targets say.

    :ivar count: GPU hosts; the first three of five are in region eu, the others in us.
    """

    def __init__(self, count: int = 5) -> None:
        self.count = count
        self.start = time.time()
        self.engines = [f"gpu{number}" for number in range(1, count + 1)]
        self.gateways = {"gw1": "eu", "gw2": "us"}

    def region(self, host: str) -> str:
        """The region of a host."""
        if host in self.gateways:
            return self.gateways[host]
        return "eu" if host == "mon1" or (int(host[3:]) - 1) % 5 < 3 else "us"

    def engine(self, host: str) -> str:
        """The engine that a host runs."""
        return ENGINES[(int(host[3:]) - 1) % len(ENGINES)]

    def targets(self) -> dict[str, list[dict[str, Any]]]:
        """Hosts of each job with their labels."""
        jobs: dict[str, list[tuple[str, str]]] = {
            "engine": [(host, "engine") for host in self.engines],
            "gpu": [(host, "engine") for host in self.engines],
            "node": [(host, "engine") for host in self.engines]
            + [(host, "gateway") for host in self.gateways]
            + [("mon1", "prometheus")],
            "gateway": [(host, "gateway") for host in self.gateways],
            "probe": [(host, "gateway") for host in self.gateways],
            "spanmetrics": [("mon1", "tracing")],
        }
        return {
            job: [{"host": host, "region": self.region(host), "role": role} for host, role in hosts]
            for job, hosts in jobs.items()
        }

    def page(self, host: str, job: str) -> str:
        """A page, as an exporter would write it."""
        age = time.time() - self.start + AGE
        found = getattr(self, f"_{job}")(host, age)
        return "\n".join(found) + "\n"

    def _engine(self, host: str, age: float) -> Iterator[str]:
        kind = self.engine(host)
        running, waiting = 12 + int(host[3:]) % 4, int(host[3:]) % 3
        if kind == "llama_cpp":
            yield line("llamacpp:requests_processing", 1)
            yield line("llamacpp:requests_deferred", 0)
            yield line("llamacpp:prompt_tokens_total", 55 * age)
            yield line("llamacpp:tokens_predicted_total", 31 * age)
            return
        if kind == "tensorrt_llm":
            yield line("trtllm_num_requests_running", running)
            yield line("trtllm_num_requests_waiting", waiting)
            yield line("trtllm_kv_cache_utilization", 0.52)
            yield line("trtllm_prompt_tokens_total", 3100 * age)
            yield line("trtllm_generation_tokens_total", 980 * age)
            yield from histogram("trtllm_time_to_first_token_seconds", TTFT, 0.4, 3, age)
            yield from histogram("trtllm_time_per_output_token_seconds", SHORT, 0.024, 900, age)
            return
        colon = "vllm:" if kind == "vllm" else "sglang:"
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        if kind == "sglang":
            names = ("num_running_reqs", "num_queue_reqs", "token_usage")
        for name, value in zip(names, (running, waiting, 0.61)):
            yield line(colon + name, value)
        yield line(f"{colon}prompt_tokens_total", 4200 * age)
        yield line(f"{colon}generation_tokens_total", 1200 * age)
        if kind == "vllm":
            yield line("vllm:num_preemptions_total", 0.01 * age)
        yield from histogram(f"{colon}time_to_first_token_seconds", TTFT, 0.35, 4, age)
        yield from histogram(f"{colon}inter_token_latency_seconds", SHORT, 0.021, 1100, age)
        yield line("process_start_time_seconds", self.start - AGE)

    def _gpu(self, host: str, age: float) -> Iterator[str]:
        sick = host == self.engines[-1]
        for gpu in range(GPUS):
            labels = {
                "gpu": gpu,
                "UUID": f"GPU-{host}-{gpu}",
                "modelName": "NVIDIA A100-SXM4-80GB",
                "hostname": host,
                "DCGM_FI_DRIVER_VERSION": "550.163.01",
                "simulated": "true",
            }
            wave = 0.5 + 0.5 * math.sin(age / 40 + gpu)
            values = {
                "DCGM_FI_DEV_GPU_UTIL": 60 + 20 * wave,
                "DCGM_FI_PROF_SM_ACTIVE": 0.3 + 0.2 * wave,
                "DCGM_FI_PROF_SM_OCCUPANCY": 0.2,
                "DCGM_FI_PROF_DRAM_ACTIVE": 0.55 + 0.2 * wave,
                "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.1 + 0.1 * wave,
                "DCGM_FI_DEV_FB_USED": 72000,
                "DCGM_FI_DEV_FB_FREE": 9050,
                "DCGM_FI_DEV_GPU_TEMP": 58 + 9 * wave + gpu,
                "DCGM_FI_DEV_MEMORY_TEMP": 70 + 8 * wave,
                "DCGM_FI_DEV_POWER_USAGE": 280 + 70 * wave,
                "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 300000 * age,
                "DCGM_FI_DEV_SM_CLOCK": 1400,
                "DCGM_FI_PROF_PCIE_TX_BYTES": 4e8,
                "DCGM_FI_PROF_PCIE_RX_BYTES": 6e8,
                "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": 3,
                "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 0,
                "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 1,
                "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 0,
                "DCGM_FI_DEV_ROW_REMAP_PENDING": 0,
                "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
                "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": 0,
                "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": 0,
                "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": 0,
                "DCGM_FI_DEV_PCIE_LINK_WIDTH": 16,
                "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH": 16,
                "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 0,
                "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": 0,
                "DCGM_FI_DEV_PERSISTENCE_MODE": 1,
            }
            for name, value in values.items():
                yield line(name, value, **labels)
            if sick and gpu == 3:
                yield line("DCGM_EXP_XID_ERRORS_COUNT", 1, **labels, xid=79)

    def _node(self, host: str, age: float) -> Iterator[str]:
        for cpu in range(2):
            yield line("node_cpu_seconds_total", 0.7 * age, cpu=cpu, mode="idle")
            yield line("node_cpu_seconds_total", 0.3 * age, cpu=cpu, mode="user")
        yield line("node_memory_MemTotal_bytes", 1024 * GIB)
        yield line("node_memory_MemAvailable_bytes", 700 * GIB)
        for mount, free in (("/", 0.6), ("/srv/models", 0.35)):
            labels = {"device": "/dev/md0", "fstype": "xfs", "mountpoint": mount}
            yield line("node_filesystem_size_bytes", 7e12, **labels)
            yield line("node_filesystem_avail_bytes", 7e12 * free, **labels)
        yield line("node_disk_read_bytes_total", 3e6 * age, device="nvme0n1")
        yield line("node_disk_written_bytes_total", 1e6 * age, device="nvme0n1")
        yield line("node_network_receive_bytes_total", 2e7 * age, device="eth0")
        yield line("node_network_transmit_bytes_total", 3e7 * age, device="eth0")
        yield line("node_boot_time_seconds", self.start - 86400)
        yield line("node_textfile_scrape_error", 0)
        if host in self.engines:
            yield from self._gpu_host(host, age)
        if host == "mon1":
            yield from self._quality()

    def _gpu_host(self, host: str, age: float) -> Iterator[str]:
        release = "deepseek-r1-70b-3f2a91c0" if int(host[3:]) % 5 else "deepseek-r1-70b-81be77d4"
        labels = {"model": "deepseek-r1-70b", "engine": self.engine(host), "engine_version": "1", "weights": "3f2a91c0"}
        yield line("gpufleet_release_info", 1, release=release, **labels)
        yield line("gpufleet_nvme_raid_members_present", 4, array="models")
        yield line("gpufleet_nvme_raid_members_expected", 4, array="models")
        yield line("gpufleet_weights_verify_timestamp_seconds", self.start - 86400, set="3f2a91c0")
        yield line("gpufleet_weights_verify_damaged_pieces", 0, set="3f2a91c0")
        yield line("gpufleet_weights_verify_missing_files", 0, set="3f2a91c0")
        yield line("nvme_percentage_used_ratio", 0.04, device="nvme0n1")
        for way in ("received", "transmitted"):
            yield line(f"node_infiniband_port_data_{way}_bytes_total", 9e8 * age, device="mlx5_0", port=1)

    def _quality(self) -> Iterator[str]:
        who = {"release": "deepseek-r1-70b-3f2a91c0", "model": "deepseek-r1-70b", "suite": "1-5ad0c3"}
        yield line("gpufleet_quality_baseline", 1, **who)
        yield line("gpufleet_quality_stale_seconds", 7200)
        yield line("gpufleet_quality_scored_timestamp_seconds", self.start, **who)
        for language, score, value in (
            ("en", "reference_bleu", 38.2),
            ("en", "drift_chrf", 61.4),
            ("zh", "reference_bleu", 33.9),
            ("zh", "drift_chrf", 29.7),
        ):
            labels = {**who, "language": language, "score": score}
            yield line("gpufleet_quality_score", value, **labels)
            yield line("gpufleet_quality_baseline_mean", value + 0.3, **labels)
            yield line("gpufleet_quality_lowest", value - 1.5, **labels)
            yield line("gpufleet_quality_beyond_noise", 0, **labels)
        yield line("gpufleet_load_test_last_run_timestamp_seconds", self.start - 9 * 86400)
        yield line("gpufleet_load_test_passed", 1)
        for users, rate in ((8, 3.1), (16, 5.8), (32, 9.6)):
            yield line("gpufleet_load_test_requests_per_second", rate, users=users)
            yield line("gpufleet_load_test_tokens_per_second", rate * 240, users=users)
            yield line("gpufleet_load_test_ttft_seconds", 0.4 + users / 40, users=users, quantile="0.99")
            yield line("gpufleet_load_test_step_passed", 1, users=users)

    def _gateway(self, host: str, age: float) -> Iterator[str]:
        region = self.region(host)
        for tenant, rate in (("search", 9.0), ("support", 4.0), ("batch", 2.0)):
            yield line("gw_requests_total", rate * age, tenant=tenant, tier="standard", code=200)
            yield line("gw_requests_total", rate * 0.05 * age, tenant=tenant, tier="standard", code=429)
            yield line("gw_requests_total", rate * 0.0004 * age, tenant=tenant, tier="standard", code=503)
            yield line("gw_rejected_total", rate * 0.05 * age, tenant=tenant, reason="tokens")
            yield line("gw_tokens_total", rate * 240 * age, tenant=tenant, kind="completion")
            yield line("gw_tokens_charged_total", rate * 900 * age, tenant=tenant)
            yield line("gw_inflight", rate * 2, tenant=tenant)
        yield from histogram("gw_ttft_seconds", TTFT, 0.45, 15, age, region=region)
        yield from histogram("gw_itl_seconds", SHORT, 0.022, 3000, age, region=region)
        yield from histogram("gw_request_seconds", TTFT, 6, 15, age, tier="standard")
        yield from histogram("gw_gateway_seconds", SHORT, 0.002, 15, age, tier="standard")
        for peer in self.engines:
            if self.region(peer) == region:
                yield line("gw_peer_inflight", 12, peer=peer)
                yield line("gw_peer_up", 1, peer=peer, state="up")
        yield line("gw_retries_total", 0.02 * age, reason="connect")
        yield line("gw_breaker_transitions_total", 4, peer=self.engines[0], to="open")
        yield line("gw_config_version_info", 1, version="f8ee3385b1df")
        yield line("gw_config_reload_success", 1)
        yield line("gw_shm_free_bytes", 40 << 20, dict="gw_metrics")
        yield line("gw_retry_budget_left", 10)
        yield line("gw_spans_dropped_total", 0.01 * age, reason="full")

    def _probe(self, host: str, age: float) -> Iterator[str]:
        yield line("probe_success", 1, module="http_gateway")
        yield line("probe_ssl_earliest_cert_expiry", self.start + 60 * 86400, module="http_gateway")

    def _spanmetrics(self, host: str, age: float) -> Iterator[str]:
        labels = {"service_name": "gateway", "span_name": "POST /v1/chat/completions", "span_kind": "SPAN_KIND_SERVER"}
        milliseconds = (50, 100, 250, 500, 1000, 2000, 5000, 10000, 20000, 40000, 80000, 160000, 320000)
        yield from histogram("traces_span_metrics_duration_milliseconds", milliseconds, 6000, 15, age, **labels)


def scrape_config(fleet: Fleet, address: str, own: str) -> list[dict[str, Any]]:
    """Prometheus' scrape_configs for the fleet.

    :arg address: where the pages are served, host:port.
    :arg own: where Prometheus itself answers, host:port.
    """
    found: list[dict[str, Any]] = [
        {
            "job_name": job,
            "static_configs": [
                {"targets": [address], "labels": {**labels, "__metrics_path__": f"/{labels['host']}/{job}"}}
                for labels in targets
            ],
            # One server for all: the instance is what would be the host's address.
            "relabel_configs": [{"source_labels": ["host"], "target_label": "instance"}],
        }
        for job, targets in fleet.targets().items()
    ]
    labels = {"host": "mon1", "region": "eu", "role": "prometheus"}
    found.append({"job_name": "prometheus", "static_configs": [{"targets": [own], "labels": labels}]})
    return found


def server(fleet: Fleet, address: str, port: int) -> ThreadingHTTPServer:
    """A server of the pages, not yet running."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = fleet.targets()
            host, _slash, job = self.path.strip("/").partition("/")
            found = any(one["host"] == host for one in known.get(job, []))
            body = fleet.page(host, job).encode() if found else b"no such target\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a line."""

    return ThreadingHTTPServer((address, port), Pages)


def main() -> int:
    """Serve the pages until stopped."""
    parser = argparse.ArgumentParser(description="Metrics pages of a made-up fleet.")
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9900)
    parser.add_argument("--hosts", type=int, default=5)
    options = parser.parse_args()
    fleet = Fleet(options.hosts)
    json.dump(scrape_config(fleet, f"{options.listen}:{options.port}", "127.0.0.1:9090"), sys.stdout)
    sys.stdout.flush()
    server(fleet, options.listen, options.port).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
