# SPDX-License-Identifier: Apache-2.0
"""What role deepseek_service writes for each GPU engine and runtime, rendered by Ansible itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import GPUS
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import known
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_fit import PlanHost, Wish, make_plan
from ansible_collections.gpufleet.deepseek.plugins.module_utils._plan_hosts import gpu_device

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "deepseek_service"
ENGINES = ("tensorrt_llm", "sglang", "vllm")
RUNTIMES = ("venv", "podman", "docker")
RELEASE, WEIGHTS = "/srv/models/releases/r1", "/srv/models/weights/0123"
DIGEST = "sha256:" + "ab" * 32


def a_plan(engine: str) -> dict[str, t.Any]:
    product = GPUS["a100-sxm4-80gb"]
    hosts = [
        PlanHost(f"gpu{n}", "eu", gpu_device(product), "a100", product.generation, 8, True, 0) for n in range(1, 3)
    ]
    model, wish = {
        "tensorrt_llm": ("deepseek-r1-distill-llama-70b", Wish(engine=engine, precision="fp16")),
        "sglang": ("deepseek-r1", Wish(engine=engine, precision="int8")),
        "vllm": ("deepseek-r1", Wish(engine=engine, precision="awq")),
    }[engine]
    return make_plan(known(model), hosts, wish)


def inventory(place: Path, engine: str, runtime: str) -> Path:
    """What an operator sets, and what the rest of the role would know."""
    path = place / f"{engine}-{runtime}.json"
    values = {
        "engine": engine,
        "runtime": runtime,
        "ansible_python_interpreter": sys.executable,
        "role_path": str(ROLE),
        "fleet_config_dir": "/etc/gpufleet",
        "fleet_models_dir": "/srv/models",
        "fleet_api_key": "0123456789abcdef",
        "fleet_plan": a_plan(engine),
        "deepseek_service_engine": engine,
        "deepseek_service_runtime": runtime,
        "deepseek_service_listen_address": "127.0.0.1" if engine == "tensorrt_llm" else "{{ fleet_address }}",
        "deepseek_service_image": f"registry.example/{engine}/server",
        "deepseek_service_image_digest": DIGEST,
        "ansible_facts": {"systemd": {"version": 252}},
        "deepseek_service_rdma_interface": "eth0",
        "deepseek_service_model_name": "deepseek",
        "__deepseek_service_release_dir": RELEASE,
        "__deepseek_service_weights_dir": WEIGHTS,
    }
    path.write_text(json.dumps(values), "utf-8")
    return path


@pytest.fixture(name="written", scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render everything for two hosts in one run of ansible-playbook."""
    place = tmp_path_factory.mktemp("templates")
    (place / "templates").symlink_to(ROLE / "templates")
    task = {
        "name": "Write",
        "ansible.builtin.copy": {
            "dest": f"{place}/out/{{{{ inventory_hostname }}}}-{{{{ engine }}}}-{{{{ runtime }}}}.json",
            "content": (
                "{{ __deepseek_service_engine_files | combine({'unit': lookup('ansible.builtin.template', 'deepseek-service.service.j2'),"
                " 'problems': __deepseek_service_engine_problems + __deepseek_service_runtime_problems}) | to_json }}"
            ),
            "mode": "0644",
        },
    }
    plays = [
        {
            "name": f"{engine} in {runtime}",
            "hosts": "gpu1:gpu2",
            "connection": "local",
            "gather_facts": False,
            # The last file wins, as the inventory wins over a role's defaults.
            "vars_files": [
                str(ROLE / "defaults" / "main.yml"),
                str(ROLE / "vars" / "main.yml"),
                str(ROLE / "vars" / "engines" / f"{engine}.yml"),
                str(ROLE / "vars" / "runtimes" / f"{runtime}.yml"),
                str(inventory(place, engine, runtime)),
            ],
            "tasks": [task],
        }
        for engine in ENGINES
        for runtime in RUNTIMES
    ]
    (place / "play.yml").write_text(yaml.safe_dump(plays, sort_keys=False), "utf-8")
    (place / "hosts.yml").write_text(
        yaml.safe_dump(
            {"all": {"hosts": {"gpu1": {"fleet_address": "10.0.0.11"}, "gpu2": {"fleet_address": "10.0.0.12"}}}}
        ),
        "utf-8",
    )
    (place / "out").mkdir()
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [str(program), "-i", str(place / "hosts.yml"), str(place / "play.yml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (place / "out").glob("*.json"):
        for name, text in json.loads(path.read_text("utf-8")).items():
            content = text if isinstance(text, str) else json.dumps(text)
            path.with_name(f"{path.stem}-{name}").write_text(content, "utf-8")
    return place / "out"


@pytest.fixture(name="supervisor", scope="module")
def load_supervisor() -> t.Any:
    spec = importlib.util.spec_from_file_location(
        "supervisor_of_templates", ROLE / "files" / "engines" / "supervisor.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_supervisor_takes_its_file(written: Path, supervisor: t.Any, engine: str, runtime: str) -> None:
    for host in ("gpu1", "gpu2"):
        assert json.loads((written / f"{host}-{engine}-{runtime}-problems").read_text("utf-8")) == []
        config = supervisor.load_config(str(written / f"{host}-{engine}-{runtime}-supervisor.json"))
        assert "127.0.0.1" not in json.dumps(config["argv"])
        assert {"@ADDRESS@", "@PORT@"} <= set(config["argv"]) or config["role"] == "worker"
        argv = supervisor.placed(config, {"listen_address": "127.0.0.1", "port": 8000})["argv"]
        assert ("8000" in argv) == ("@PORT@" in config["argv"])
        assert config["engine_file"] == f"{RELEASE}/config/engine.yml"
        assert config["engine_file"] in config["argv"]
        assert WEIGHTS in config["argv"]
        assert "0123456789abcdef" not in json.dumps(config)
        assert config["argv"][0].startswith("/opt/gpufleet/engines/") == (runtime == "venv")


def test_hosts_of_a_replica_know_their_places(written: Path, supervisor: t.Any) -> None:
    one, two = (supervisor.load_config(str(written / f"gpu{n}-sglang-venv-supervisor.json")) for n in (1, 2))
    assert (one["role"], two["role"]) == ("leader", "worker")
    assert one["leader"]["address"] == two["leader"]["address"] == "10.0.0.11"
    assert two["environment"]["NCCL_SOCKET_IFNAME"] == "eth0"
    file = yaml.safe_load((written / "gpu2-sglang-venv-engine.yml").read_text("utf-8"))
    assert (file["dist-init-addr"], file["node-rank"]) == ("10.0.0.11:20000", 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engines_file_is_the_same_in_every_runtime(written: Path, engine: str) -> None:
    texts = {(written / f"gpu1-{engine}-{runtime}-engine.yml").read_text("utf-8") for runtime in RUNTIMES}
    assert len(texts) == 1
    lines = texts.pop().splitlines()
    assert lines[0].startswith("# Managed by role deepseek_service")
    keys = [line.partition(":")[0] for line in lines if line and line[0] not in " -#"]
    assert keys == sorted(keys)


@pytest.mark.parametrize("engine", ENGINES)
def test_venv_unit(written: Path, engine: str) -> None:
    text = (written / f"gpu1-{engine}-venv-unit").read_text("utf-8")
    assert "User=gpufleet-engine" in text
    assert f"/bin/python -I -B {RELEASE}/launcher.py --config={RELEASE}/config/supervisor.json\n" in text
    assert text.count("LoadCredential=") == 2
    # A closed unit, open for GPUs: ProtectClock and ProcSubset would take them away.
    assert "CapabilityBoundingSet=\n" in text
    for wrong in ("ProtectClock=", "PrivateDevices=", "ProcSubset=", "@resources\n", "MemoryDenyWriteExecute="):
        assert wrong not in text, wrong


@pytest.mark.parametrize("runtime", ["podman", "docker"])
@pytest.mark.parametrize("engine", ENGINES)
def test_container_unit(written: Path, engine: str, runtime: str) -> None:
    text = (written / f"gpu1-{engine}-{runtime}-unit").read_text("utf-8")
    assert f" registry.example/{engine}/server@{DIGEST} " in text
    for wanted in (
        "--pull=never",
        "--read-only",
        "--network=host",
        "--device=nvidia.com/gpu=all",
        f"--volume={RELEASE}:{RELEASE}:ro",
        f"--volume={WEIGHTS}:{WEIGHTS}:ro",
        "--security-opt=no-new-privileges",
        "--stop-timeout=55",
    ):
        assert f" {wanted} " in text, wanted
    assert "--privileged" not in text
    assert "0123456789abcdef" not in text
    assert ("NOTIFY_SOCKET" in text) == (runtime == "podman")
    assert ("\nType=notify\n" if runtime == "podman" else "\nType=exec\n") in text
    assert ("WatchdogSec=" in text) == (runtime == "podman")
    # The client of the container is no engine: it may not be locked up.
    assert "CapabilityBoundingSet=" not in text
    for name in ("listen", "api_keys"):
        assert f"LoadCredential={name}:/etc/gpufleet/deepseek_service/" in text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_systemd_reads_the_unit(written: Path, tmp_path: Path, runtime: str) -> None:
    unit = tmp_path / "gpufleet-test.service"
    body = (written / f"gpu1-vllm-{runtime}-unit").read_text("utf-8")
    # systemd-analyze wants to see the programs and the user: those of this machine stand in for them.
    for program in ("/usr/bin/podman", "/usr/bin/docker", "/opt/gpufleet/engines/vllm/0.33.0/bin/python"):
        body = body.replace(program, "/bin/true")
    body = body.replace("=gpufleet-engine", "=daemon")
    # The machine of the test has no Docker.
    body = body.replace("Requires=docker.service\n", "")
    unit.write_text(body, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if "gpufleet-test" in line] == []
