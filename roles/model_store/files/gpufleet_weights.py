# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The work on weights that must outlive a connection: fill, publish and serve sets, and verify them on a timer.

``run`` is what the unit gpufleet-weights@.service starts, ``verify`` what the timer starts; ``status`` waits for news. The code that knows about
weights is that of the collection's modules and lies in a directory beside this file. Python 3.9 or newer; only some sources need more than it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights as weights
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_sign as signing

_TICK = 0.2


def stop_event() -> threading.Event:
    """Set when somebody asks this process to end."""
    stop = threading.Event()

    def handler(_number: int, _frame: t.Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)
    return stop


def run_program(argv: t.Sequence[str], environment: t.Mapping[str, str]) -> tuple[int, str]:
    """Run a program to its end: its exit code, and what it said on standard error."""
    done = subprocess.run(
        argv, env=dict(environment), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stderr


def command_run(job_file: str, secrets: str) -> int:
    """Run one job."""
    os.umask(0o022)
    stop = stop_event()
    access = jobs.take_secrets(secrets)
    return jobs.run(jobs.read_job(job_file), access, stop, run_program)


def ended(unit: str) -> bool:
    """Whether the unit is over, so that a status that says otherwise is one of a job that was killed."""
    done = subprocess.run(["/usr/bin/systemctl", "is-active", unit], capture_output=True, text=True, check=False)
    return done.stdout.strip() in ("inactive", "failed")


def command_status(state_dir: str, kind: str, job: str, after: int, timeout: float, unit: str) -> int:
    """Print the status as soon as it has news, or when the time is up."""
    until = time.monotonic() + timeout
    while True:
        over = bool(unit) and ended(unit)
        status = jobs.read_status(state_dir, kind)
        mine = bool(status) and (not job or status["job"] == job)
        if mine and status["state"] == "running" and over:
            status.update(
                state="failed",
                message=f"the job was ended from outside, and the next run goes on where it was; journalctl -u {unit} tells more",
            )
        elif not mine and over:
            status = {
                "state": "failed",
                "job": job,
                "lines": [],
                "message": f"the job did not begin; journalctl -u {unit} tells more",
            }
            mine = True
        lines = status.get("lines") or [] if mine else []
        news = any(line["seq"] > after for line in lines)
        if news or (mine and status["state"] != "running") or time.monotonic() >= until:
            print(json.dumps(status if mine else {}))
            return 0
        time.sleep(_TICK)


def command_verify(models: str, state_dir: str, metrics_dir: str, threads: int) -> int:
    """Read every byte of every set. The exit code is 1 when something is damaged."""
    stop = stop_event()
    job = jobs.Job("seed", "verify", models, state_dir, metrics_dir=metrics_dir, threads=threads)
    try:
        wrong = jobs.verify_all(job, stop)
    except (weights.WeightsError, merkle.MerkleError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 2
    for text in wrong:
        print(text, file=sys.stderr)
    print(f"{len(weights.sets(models))} sets were verified, {len(wrong)} are not as their manifests say")
    return 1 if wrong else 0


def command_sign(models: str, root: str) -> int:
    """Sign the manifest of a set with the private key on standard input, and leave a signature that is good already."""
    places = weights.Places(models, weights.check_root(root))
    keys = json.load(sys.stdin)
    manifest = merkle.read_manifest(places.manifest, root)
    if keys.get("public"):
        try:
            with open(places.signature, "rb") as stream:
                signing.check(manifest, stream.read(), keys["public"])
            print(json.dumps({"changed": False}))
            return 0
        except (FileNotFoundError, weights.WeightsError):
            pass
    signature = signing.sign(manifest, keys["private"])
    if keys.get("public"):
        signing.check(manifest, signature, keys["public"])
    if keys.get("write", True):
        weights.write_bytes(places.signature, signature)
    print(json.dumps({"changed": True}))
    return 0


def command_check(models: str, root: str) -> int:
    """Check the signature of a set that is in place with the public key on standard input."""
    places = weights.Places(models, weights.check_root(root))
    manifest = merkle.read_manifest(places.manifest, root)
    try:
        with open(places.signature, "rb") as stream:
            signature = stream.read()
    except FileNotFoundError:
        raise weights.WeightsError(f"{places.signature}: expected a signature, found none") from None
    signing.check(manifest, signature, sys.stdin.read())
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="run a job, in the foreground")
    one.add_argument("--job", required=True)
    one.add_argument("--secrets", default="")
    one = commands.add_parser("status", help="print the status of a job as JSON when it has news")
    one.add_argument("--state-dir", default="/var/lib/gpufleet/model_store")
    one.add_argument("--kind", choices=jobs.KINDS, default="fill")
    one.add_argument("--job", default="", help="job that is waited for")
    one.add_argument("--after", type=int, default=-1, help="number of the line that is known already")
    one.add_argument("--timeout", type=float, default=0.0)
    one.add_argument("--unit", default="", help="unit that runs it")
    one = commands.add_parser("verify", help="read every byte of every set")
    one.add_argument("--models", required=True)
    one.add_argument("--state-dir", default="/var/lib/gpufleet/model_store")
    one.add_argument("--metrics-dir", default="")
    one.add_argument("--threads", type=int, default=1)
    for name, text in (("sign", "sign a manifest"), ("check", "check the signature of a manifest")):
        one = commands.add_parser(name, help=f"{text}, with the key on standard input")
        one.add_argument("--models", required=True)
        one.add_argument("--root", required=True)
    args = parser.parse_args()
    try:
        if args.command == "run":
            return command_run(args.job, args.secrets)
        if args.command == "status":
            return command_status(args.state_dir, args.kind, args.job, args.after, args.timeout, args.unit)
        if args.command == "verify":
            return command_verify(args.models, args.state_dir, args.metrics_dir, args.threads)
        if args.command == "sign":
            return command_sign(args.models, args.root)
        return command_check(args.models, args.root)
    except (weights.WeightsError, merkle.MerkleError) as exc:
        print(exc, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
