# SPDX-License-Identifier: Apache-2.0
"""Pack the stand-in of the engines into wheels of the engines' names, for hosts that install one as they would install the engine.

    python3 tests/mock/standin_wheels.py DIRECTORY [--python PYTHON]

The directory then is a package index (``file://DIRECTORY/simple/``), and holds ``ENGINE.txt``, requirements with hashes for each engine.
The wheels' versions end in ``+simulated``. What they need (PyYAML) is taken from the package index that pip is set up for.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = {"sglang": "sglang", "vllm": "vllm", "tensorrt_llm": "tensorrt-llm"}
MAIN = "import sys\nfrom {package}._standin import main\n\n\ndef run():\n    return main({engine!r}, sys.argv[1:])\n"
SCRIPTS = {"vllm": "vllm", "tensorrt_llm": "trtllm-serve"}


def wheel(directory: Path, engine: str, version: str) -> Path:
    """Write one wheel; the same every time."""
    info = f"{engine}-{version}.dist-info"
    files = {
        f"{engine}/__init__.py": MAIN.format(package=engine, engine=engine),
        f"{engine}/_standin.py": (HERE / "engine_standin.py").read_text("utf-8"),
        f"{engine}/engine_options.json": (HERE / "engine_options.json").read_text("utf-8"),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAMES[engine]}\nVersion: {version}\nRequires-Dist: PyYAML\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: gpufleet\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if engine == "sglang":
        files[f"{engine}/launch_server.py"] = "import sys\n\nfrom sglang import run\n\nsys.exit(run())\n"
    else:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{SCRIPTS[engine]} = {engine}:run\n"
    record = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    path = directory / f"{engine}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path


def main() -> int:
    """Make the directory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--python", action="append", default=[], help="versions of Python that the hosts have, such as 3.11"
    )
    parser.add_argument("--version", action="append", default=[], help="ENGINE=VERSION")
    options = parser.parse_args()
    simple = options.directory / "simple"
    simple.mkdir(parents=True, exist_ok=True)
    versions = {
        "sglang": "0.5.23",
        "vllm": "0.33.0",
        "tensorrt_llm": "1.2.1",
        **dict(v.split("=") for v in options.version),
    }
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(simple),
    ]
    for python in options.python or [f"{sys.version_info[0]}.{sys.version_info[1]}"]:
        subprocess.run([*command, f"--python-version={python}", "PyYAML==6.0.3"], check=True)
    made = {engine: wheel(simple, engine, f"{version}+simulated") for engine, version in versions.items()}
    yaml_files = sorted(simple.glob("[Pp]y[Yy][Aa][Mm][Ll]-*.whl"))
    for name, paths in {"pyyaml": yaml_files, **{NAMES[engine]: [path] for engine, path in made.items()}}.items():
        page = simple / name
        page.mkdir(exist_ok=True)
        links = []
        for path in paths:
            path.rename(page / path.name)
            links.append(f'<a href="{path.name}">{path.name}</a><br>')
        (page / "index.html").write_text("<!DOCTYPE html>\n" + "\n".join(links) + "\n", "utf-8")
    for engine in versions:
        lines = [("pyyaml", "PyYAML==6.0.3"), (NAMES[engine], f"{NAMES[engine]}=={versions[engine]}+simulated")]
        text = ""
        for name, pin in lines:
            hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (simple / name).glob("*.whl"))
            text += pin + "".join(f" \\\n    --hash=sha256:{digest}" for digest in hashes) + "\n"
        (options.directory / f"{engine}.txt").write_text(text, "utf-8")
    print(f"{simple}: {', '.join(path.name for path in made.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
