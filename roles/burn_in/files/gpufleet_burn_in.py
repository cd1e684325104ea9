# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The burn-in of a GPU host: runs the tests one after the other, detached from whoever asked for it.

``run`` is what the unit gpufleet-burn-in.service starts; ``status`` waits for news of it. What the numbers mean is decided by the same code that
the collection's modules use: it lies in a directory beside this file. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in as proof
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in_tools as tools
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import gather
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output, Reader

HERE = Path(__file__).resolve().parent
SIMULATION = "/var/lib/gpufleet/simulated"
SYSTEM_DIRS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# A stand-in of the lab says so in its first lines; what it prints must never pass for a measurement.
STAND_IN = (b"gpufleet.deepseek", b"simulated")
MOST_LINES = 400
MOST_OUTPUT = 8 * 1024 * 1024
TICK = 0.1
GRACE = 10.0
# ib_write_bw listens a moment after it was started, and says nothing about it.
SERVER_HEAD_START = 1.5

Params = dict[str, t.Any]
Entry = dict[str, t.Any]


class Cancelled(Exception):
    """Somebody stopped the job."""


class NotRun(Exception):
    """A test that cannot be run here, and why."""


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_json(path: Path, data: t.Any) -> None:
    """Write a file at once or not at all, also when the power goes."""
    part = path.with_name(f".{path.name}.new")
    with part.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.chmod(0o644)
    part.replace(path)
    # The directory, too: a result that was set aside must not come back with the power.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Status:
    """What the job tells those who wait for it: one file, with the lines that people read."""

    def __init__(self, directory: Path, job: str, names: t.Sequence[str]) -> None:
        self._path = directory / "status.json"
        self._started = time.monotonic()
        self.data: dict[str, t.Any] = {
            "schema": proof.SCHEMA,
            "job": job,
            "state": "running",
            "seq": 0,
            "started": now(),
            "done": 0,
            "total": len(names),
            "test": "",
            "verdict": "",
            "tests": dict.fromkeys(names, "waiting"),
            "lines": [],
        }

    def say(self, text: str, **changes: t.Any) -> None:
        """Add a line and write the file."""
        self.data.update(changes)
        self.data["seq"] += 1
        self.data["updated"] = now()
        elapsed = proof.duration(time.monotonic() - self._started)
        head = f"{self.data['done']}/{self.data['total']}, {elapsed}"
        self.data["lines"] = [*self.data["lines"], {"seq": self.data["seq"], "text": f"{head}: {text}"}][-MOST_LINES:]
        write_json(self._path, self.data)


class Programs:
    """Finds programs, and runs them in a process group of their own so that nothing of them is left behind."""

    def __init__(
        self, search_dirs: t.Sequence[str], logs: Path, heartbeat: float, say: t.Callable[[str], None]
    ) -> None:
        self._path = os.pathsep.join([*search_dirs, *SYSTEM_DIRS])
        self._logs = logs
        self._heartbeat = heartbeat
        self._say = say
        self.cancelled = False
        self._groups: list[int] = []

    def find(self, name: str) -> str | None:
        """The path of a program."""
        return shutil.which(name, path=self._path)

    def need(self, name: str) -> str:
        """The path of a program that a test cannot do without."""
        path = self.find(name)
        if path is None:
            raise NotRun(f"{name} is not installed")
        return path

    @staticmethod
    def is_stand_in(path: str) -> bool:
        """Whether it is one of the lab's programs that only print."""
        try:
            with open(path, "rb") as file:
                head = file.read(1024)
        except OSError:
            return False
        return all(word in head for word in STAND_IN)

    def start(self, argv: t.Sequence[str], log: str) -> subprocess.Popen[bytes]:
        """Start a program; its output goes to files, so that no full pipe can stop it."""
        with (self._logs / f"{log}.out").open("wb") as out, (self._logs / f"{log}.err").open("wb") as err:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd="/",
                env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": self._path},
                start_new_session=True,
            )
        self._groups.append(process.pid)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a program and what it started: asked first, then made to."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.wait(GRACE)
                break
            except subprocess.TimeoutExpired:
                continue
        if process.pid in self._groups:
            self._groups.remove(process.pid)

    def output(self, log: str) -> tuple[str, str]:
        """What a program has written."""
        texts = []
        for ending in ("out", "err"):
            with (self._logs / f"{log}.{ending}").open("rb") as file:
                texts.append(file.read(MOST_OUTPUT).decode("utf-8", "replace"))
        return texts[0], texts[1]

    def run(self, argv: t.Sequence[str], log: str, timeout: float) -> tuple[int, str, str]:
        """Run a program to its end, with news while it runs; 124 when its time is over."""
        process = self.start(argv, log)
        begun = told = time.monotonic()
        try:
            while process.poll() is None:
                if self.cancelled:
                    raise Cancelled
                passed = time.monotonic()
                if passed - begun > timeout:
                    out, err = self.output(log)
                    return 124, out, f"{err}\nit did not end within {proof.duration(timeout)} and was stopped"
                if passed - told >= self._heartbeat:
                    told = passed
                    self._say(
                        f"{log}: has run for {proof.duration(passed - begun)} of at most {proof.duration(timeout)}"
                    )
                time.sleep(TICK)
        finally:
            self.end(process)
        out, err = self.output(log)
        return process.returncode, out, err


class HardwareTools:
    """Runs the short tools that the hardware is read with."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def __call__(self, argv: t.Sequence[str], timeout: float) -> Output:
        """Run one; a missing tool and one that takes too long are answers, too."""
        path = self._programs.find(argv[0])
        if path is None:
            return Output(127, "", problem=f"{argv[0]} is not installed", missing=True)
        try:
            done = subprocess.run(
                [path, *argv[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            return Output(124, "", problem=f"{argv[0]} did not end within {timeout:g} s")
        except OSError as exc:
            return Output(126, "", problem=f"{argv[0]} cannot be run: {exc.strerror or exc}")
        return Output(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


class Tests:
    """The tests: what is run for each, with which words, and what came of it."""

    def __init__(
        self, programs: Programs, hardware: t.Mapping[str, t.Any], read: t.Callable[[], dict[str, t.Any]]
    ) -> None:
        self._programs = programs
        self._before = hardware
        self._read = read

    def _entry(self, reading: tools.Reading, argv: t.Sequence[str], tool: str) -> Entry:
        return {
            "outcome": "not_run" if reading.nothing else "measured",
            "reason": reading.nothing,
            "measured": reading.values,
            "errors": reading.errors,
            "notes": reading.notes,
            "versions": reading.versions,
            "command": list(argv),
            "simulated": self._programs.is_stand_in(tool),
        }

    def _need_gpus(self, at_least: int = 1) -> int:
        count = len(self._before.get("gpus") or [])
        if count < at_least:
            raise NotRun(
                f"the host has {count or 'no'} GPU{'s' if count > 1 else ''}, this test needs at least {at_least}"
            )
        return count

    def dcgmi(self, params: Params, timeout: float) -> Entry:
        """NVIDIA's own diagnostic."""
        self._need_gpus()
        tool = self._programs.need("dcgmi")
        argv = [tool, "diag", "-r", str(params["level"]), "-j", *params["extra_args"]]
        return self._entry(tools.parse_dcgmi(*self._programs.run(argv, "dcgmi", timeout)), argv, tool)

    def nvbandwidth(self, params: Params, timeout: float) -> Entry:
        """Pinned copies to and from each GPU."""
        self._need_gpus()
        tool = self._programs.need("nvbandwidth")
        argv = [tool, "-j", "-t", "host_to_device_memcpy_ce", "device_to_host_memcpy_ce", *params["extra_args"]]
        return self._entry(tools.parse_nvbandwidth(*self._programs.run(argv, "nvbandwidth", timeout)), argv, tool)

    def nccl(self, params: Params, timeout: float) -> Entry:
        """One all-reduce over all GPUs of the host, in one process."""
        count = self._need_gpus(2)
        tool = self._programs.need("all_reduce_perf")
        argv = [
            tool,
            "-b",
            params["size"],
            "-e",
            params["size"],
            "-g",
            str(count),
            "-n",
            str(params["iterations"]),
            *params["extra_args"],
        ]
        reading = tools.parse_nccl(*self._programs.run(argv, "nccl", timeout))
        ranks = reading.values.get("ranks")
        if isinstance(ranks, float) and ranks != count:
            reading.errors.append(f"all_reduce_perf ran over {ranks:g} GPUs, the host has {count}")
        return self._entry(reading, argv, tool)

    def gpu_stress(self, params: Params, timeout: float) -> Entry:
        """Products of matrices on all GPUs at once, with the same numbers, compared bit by bit between GPUs."""
        count = self._need_gpus()
        tool = self._programs.need(params["python"])
        code, _out, err = self._programs.run([tool, "-c", "import torch"], "gpu_stress_torch", 120.0)
        if code != 0:
            raise NotRun(
                f"{params['python']} (burn_in_gpu_stress_python) cannot import torch: {tools.last_words('', err)}"
            )
        argv = [tool, str(HERE / "gpu_stress.py"), "--seconds", str(params["seconds"]), "--size", str(params["size"])]
        reading = tools.parse_gpu_stress(*self._programs.run(argv, "gpu_stress", timeout))
        tested = reading.values.get("tflops")
        if isinstance(tested, dict) and len(tested) != count:
            reading.errors.append(f"gpu_stress ran on {len(tested)} GPUs, the host has {count}")
        return self._entry(reading, argv, tool)

    def _rdma_devices(self, wanted: t.Sequence[str]) -> list[tuple[str, int, int]]:
        """Device, port, and the GPU that is near; devices without hardware of their own only when they are named."""
        gpus = self._before.get("gpus") or []
        found = []
        for device in self._before.get("rdma") or []:
            named = device.get("name") in wanted
            if (wanted and not named) or (not wanted and not device.get("pci_address")):
                continue
            near = [gpu for gpu in gpus if gpu.get("numa_node") == device.get("numa_node")] or gpus
            index = next((gpu["index"] for gpu in near if gpu.get("index") is not None), 0)
            for port in device.get("ports") or []:
                if port.get("state") == "ACTIVE":
                    found.append((str(device["name"]), int(port.get("port") or 1), int(index)))
        missing = sorted(set(wanted) - {name for name, _port, _gpu in found})
        if missing:
            raise NotRun(f"burn_in_rdma_devices: {', '.join(missing)} has no active port")
        if not found:
            raise NotRun("the host has no RDMA device with an active port")
        return found

    def rdma(self, params: Params, timeout: float) -> Entry:
        """Each RDMA port writes to itself through its adapter, from and to the memory of a near GPU."""
        devices = self._rdma_devices(params["devices"])
        tool = self._programs.need("ib_write_bw")
        use_gpu = bool(params["gpu_memory"]) and bool(self._before.get("gpus"))
        if use_gpu:
            _code, out, err = self._programs.run([tool, "--help"], "rdma_help", 20.0)
            if "--use_cuda" not in out + err:
                raise NotRun(
                    "this ib_write_bw is built without CUDA; burn_in_rdma_gpu_memory: false tests from main memory, which leaves GPUDirect unproved"
                )
        whole = tools.Reading(values={"write_gbps": {}})
        argv: list[str] = []
        for number, (device, port, gpu) in enumerate(devices):
            words = [
                tool,
                "-d",
                device,
                "-i",
                str(port),
                "-F",
                "--report_gbits",
                "-D",
                str(params["seconds"]),
                "-p",
                str(18600 + number),
            ]
            words += [f"--use_cuda={gpu}"] if use_gpu else []
            words += params["extra_args"]
            server = self._programs.start(words, f"rdma_{device}_{port}_server")
            try:
                time.sleep(SERVER_HEAD_START)
                argv = [*words, "127.0.0.1"]
                log = f"rdma_{device}_{port}"
                reading = tools.parse_ib_write_bw(*self._programs.run(argv, log, timeout / len(devices)))
            finally:
                self._programs.end(server)
            label = f"{device} port {port}"
            whole.errors += [f"{label}: {error}" for error in reading.errors]
            speed = reading.values.get("write_gbps")
            if isinstance(speed, float):
                t.cast("dict[str, float]", whole.values["write_gbps"])[label] = speed
        return self._entry(whole, argv, tool)

    def memory(self, params: Params, timeout: float) -> Entry:
        """Patterns over most of the free memory."""
        tool = self._programs.need(params["tool"])
        megabytes = params["megabytes"] or self._free_megabytes()
        if params["tool"] == "stressapptest":
            argv = [tool, "-M", str(megabytes), "-s", str(params["seconds"]), "-W"]
            reading = tools.parse_stressapptest(*self._programs.run(argv, "memory", timeout))
        else:
            argv = [tool, f"{megabytes}M", "1"]
            reading = tools.parse_memtester(*self._programs.run(argv, "memory", timeout))
        reading.values["tested_mb"] = float(megabytes)
        return self._entry(reading, argv, tool)

    @staticmethod
    def _free_megabytes() -> int:
        """Four fifths of what is free, and at least half a gigabyte left for everybody else."""
        free = 0
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) // 1024
        wanted = min(free * 4 // 5, free - 512)
        if wanted < 16:
            raise NotRun(f"only {free} MB of memory are free")
        return wanted

    def fio(self, params: Params, timeout: float) -> Entry:
        """One file is written, read back and compared."""
        tool = self._programs.need("fio")
        place = Path(params["directory"])
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        place.mkdir(parents=True, exist_ok=True)
        file = place / ".gpufleet-burn-in.fio"
        argv = [
            tool,
            "--output-format=json",
            "--group_reporting",
            f"--filename={file}",
            f"--size={params['size']}",
            f"--bs={params['block_size']}",
            f"--iodepth={params['io_depth']}",
            "--ioengine=libaio",
            f"--direct={int(bool(params['direct']))}",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--name=write",
            "--rw=write",
            "--do_verify=0",
            "--end_fsync=1",
            "--name=read",
            "--stonewall",
            "--rw=read",
        ]
        try:
            return self._entry(tools.parse_fio(*self._programs.run(argv, "fio", timeout)), argv, tool)
        finally:
            file.unlink(missing_ok=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def hardware(self, _params: Params, _timeout: float) -> Entry:
        """The facts after the load, beside those before it."""
        after = self._read()
        return {
            **proof.health(after, self._before),
            "versions": {},
            "command": [],
            "simulated": bool(after.get("simulated")),
        }


class Runner:
    """One job."""

    def __init__(self, config: dict[str, t.Any]) -> None:
        self.config = config
        self.directory = Path(config["directory"])
        self.names = [name for name in proof.TESTS if name in config["tests"]]
        self.job = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}-{os.getpid()}"
        self.logs = self.directory / "logs"
        self.status = Status(self.directory, self.job, self.names)
        self.programs = Programs(config["search_dirs"], self.logs, float(config["heartbeat"]), self.status.say)

    def cancel(self, *_unused: t.Any) -> None:
        """Called by a signal."""
        self.programs.cancelled = True

    def _read_hardware(self) -> dict[str, t.Any]:
        reader = Reader("", self.config.get("simulation", SIMULATION), HardwareTools(self.programs), 30.0)
        return gather(reader, ["all"])

    def _test(self, tests: Tests, name: str) -> Entry:
        """Run one test; whatever it does, there is an entry for it."""
        wanted = self.config["tests"][name]
        started, begun = now(), time.monotonic()
        entry: Entry = {
            "outcome": "not_run",
            "measured": {},
            "errors": [],
            "notes": [],
            "versions": {},
            "command": [],
            "simulated": False,
        }
        try:
            entry.update(getattr(tests, name)(wanted["params"], float(self.config["test_timeout"])))
        except NotRun as exc:
            entry["reason"] = str(exc)
        except OSError as exc:
            entry.update(outcome="measured", errors=[f"it could not be run: {exc}"])
        entry.update(name=name, params=wanted["params"], started=started, seconds=round(time.monotonic() - begun, 1))
        return entry

    def run(self) -> int:
        """The whole job."""
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        result = self.directory / "result.json"
        if result.exists():
            # A host under test is not proved: the old result only stays for people.
            result.replace(self.directory / "previous.json")
        self._metrics(running=True)
        self.status.say(f"job {self.job} begins with {', '.join(self.names)}")
        try:
            data = self._run()
        except Cancelled:
            self.status.say("stopped before its end", state="cancelled", verdict="none")
            return 0
        except Exception as exc:
            self.status.say(f"broke off: {type(exc).__name__}: {exc}", state="failed", verdict="none")
            raise
        finally:
            self._metrics()
        write_json(result, data)
        self._metrics(data)
        verdict = data["verdict"]
        words = {"pass": "passed", "fail": "FAILED", "not_run": "is not complete", "void": "is not valid"}.get(
            verdict, verdict
        )
        self.status.say(f"burn-in {words}", state="done", verdict=verdict, test="")
        return 0

    def _run(self) -> dict[str, t.Any]:
        started, begun = now(), time.monotonic()
        before = self._read_hardware()
        tests = Tests(self.programs, before, self._read_hardware)
        marks = self.config["marks"]
        entries: list[Entry] = []
        for name in self.names:
            if self.programs.cancelled:
                raise Cancelled
            self.status.data["tests"][name] = "running"
            self.status.say(f"{name} ({proof.WORDS[name]}) begins", test=name)
            entry = self._test(tests, name)
            verdict = proof.judge(name, entry, marks)
            entries.append(entry)
            self.status.data["tests"][name] = verdict["status"]
            self.status.say(proof.summary(entry, verdict), done=len(entries))
        stand_ins = [entry["name"] for entry in entries if entry["simulated"]]
        data = {
            "schema": proof.SCHEMA,
            "job": self.job,
            "host": socket.gethostname(),
            "started": started,
            "finished": now(),
            "seconds": round(time.monotonic() - begun, 1),
            "simulated": bool(before.get("simulated")) or bool(stand_ins),
            "simulated_by": (["GPUs"] if before.get("simulated") else []) + stand_ins,
            "fingerprint": proof.fingerprint(before),
            "serials": proof.serials(before),
            "versions": proof.versions(before),
            "marks": marks,
            "tests": entries,
        }
        data["verdict"] = proof.assess(data, self.config, None)["verdict"]
        return data

    def _metrics(self, data: dict[str, t.Any] | None = None, running: bool = False) -> None:
        """Leave the outcome for Prometheus, where there is a directory for it."""
        place = Path(self.config["metrics_dir"])
        if not place.is_dir():
            return
        passed = int(bool(data) and (data or {}).get("verdict") == "pass")
        lines = [
            "# HELP gpufleet_burn_in_running Whether a burn-in runs.",
            "# TYPE gpufleet_burn_in_running gauge",
            f"gpufleet_burn_in_running {int(running)}",
            "# HELP gpufleet_burn_in_passed Whether the last burn-in passed all of its tests.",
            "# TYPE gpufleet_burn_in_passed gauge",
            f"gpufleet_burn_in_passed {passed}",
            "# HELP gpufleet_burn_in_changed_timestamp_seconds When that became so.",
            "# TYPE gpufleet_burn_in_changed_timestamp_seconds gauge",
            f"gpufleet_burn_in_changed_timestamp_seconds {int(time.time())}",
        ]
        part = place / ".gpufleet_burn_in.new"
        part.write_text("\n".join(lines) + "\n", encoding="ascii")
        part.chmod(0o644)
        part.replace(place / "gpufleet_burn_in.prom")


def take_lock(directory: Path) -> int | None:
    """The lock that says that a runner lives; None when another one has it."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for _attempt in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            # Whoever asks whether a runner lives holds it for a moment.
            time.sleep(0.1)
    os.close(descriptor)
    return None


def command_run(config_path: str) -> int:
    """Run the job of a configuration."""
    config = jobs.read_json(config_path)
    if config is None:
        print(f"{config_path}: expected a configuration in JSON", file=sys.stderr)
        return 2
    if take_lock(Path(config["directory"])) is None:
        print("another burn-in runs", file=sys.stderr)
        return 3
    runner = Runner(config)
    signal.signal(signal.SIGTERM, runner.cancel)
    signal.signal(signal.SIGINT, runner.cancel)
    return runner.run()


def command_status(directory: str, after: int, job: str, timeout: float) -> int:
    """Print the status as soon as it has something new, or when the time is over."""
    until = time.monotonic() + timeout
    while True:
        found = jobs.job_of(directory)
        news = int(found.status.get("seq") or 0) > after or found.state != "running" or (job and found.job != job)
        if news or time.monotonic() >= until:
            break
        time.sleep(0.2)
    print(json.dumps({**found.status, "state": found.state, "job": found.job}))
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the tests, in the foreground")
    run.add_argument("--config", default="/etc/gpufleet/burn_in/job.json")
    status = commands.add_parser("status", help="print the status as JSON when it has news")
    status.add_argument("--directory", default="/var/lib/gpufleet/burn_in")
    status.add_argument("--after", type=int, default=-1, help="sequence number that is known already")
    status.add_argument("--job", default="", help="job that is waited for")
    status.add_argument("--timeout", type=float, default=0.0)
    args = parser.parse_args()
    if args.command == "run":
        return command_run(args.config)
    return command_status(args.directory, args.after, args.job, args.timeout)


if __name__ == "__main__":
    sys.exit(main())
