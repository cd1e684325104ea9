# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module package_hold with a dpkg that remembers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import package_hold


class Dpkg:
    """Packages and what is to be done with them."""

    def __init__(self) -> None:
        self.selections = {
            "nvidia-smi": "install",
            "libcuda1:amd64": "install",
            "bash": "install",
            "nvidia-gone": "deinstall",
        }
        self.writes = 0
        self.broken = ""

    def run_command(
        self, _module: AnsibleModule, argv: list[str], data: str | None = None, **_more: Any
    ) -> tuple[int, str, str]:
        if argv[0] == self.broken or argv[:2] == ["dpkg", self.broken]:
            return 2, "", "database is locked"
        if argv[0] == "dpkg-query":
            states = {"nvidia-gone": "config-files"}
            return (
                0,
                "".join(f"{name}\t{want}\t{states.get(name, 'installed')}\n" for name, want in self.selections.items()),
                "",
            )
        assert argv == ["dpkg", "--set-selections"]
        self.writes += 1
        for line in (data or "").splitlines():
            name, selection = line.split()
            self.selections[name] = selection
        return 0, "", ""


@pytest.fixture(name="dpkg")
def fake_dpkg(monkeypatch: pytest.MonkeyPatch) -> Dpkg:
    dpkg = Dpkg()

    def run_command(
        module: AnsibleModule, argv: list[str], data: str | None = None, **more: Any
    ) -> tuple[int, str, str]:
        return dpkg.run_command(module, argv, data, **more)

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    return dpkg


def run(capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    with (
        patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}),
        pytest.raises(SystemExit),
    ):
        package_hold.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize(("state", "word"), [("held", "hold"), ("released", "install")])
def test_check_run_check_run(dpkg: Dpkg, capsys: pytest.CaptureFixture[str], state: str, word: str) -> None:
    other = "install" if word == "hold" else "hold"
    dpkg.selections.update({"nvidia-smi": other, "libcuda1:amd64": other})
    wish: dict[str, Any] = {"patterns": ["nvidia-*", "libcuda1"], "state": state}
    predicted = run(capsys, check=True, **wish)
    assert predicted["changed"]
    assert dpkg.writes == 0
    done = run(capsys, **wish)
    assert done["names"] == ["libcuda1:amd64", "nvidia-smi"]
    assert done["matched"] == ["libcuda1", "nvidia-smi"]
    assert done["diff"] == predicted["diff"]
    assert dpkg.selections == {
        "nvidia-smi": word,
        "libcuda1:amd64": word,
        "bash": "install",
        "nvidia-gone": "deinstall",
    }
    assert not run(capsys, check=True, **wish)["changed"]
    assert not run(capsys, **wish)["changed"]
    assert dpkg.writes == 1


@pytest.mark.parametrize(
    ("broken", "words"), [("dpkg-query", "dpkg-query failed"), ("--set-selections", "dpkg --set-selections failed")]
)
def test_a_dpkg_that_refuses(dpkg: Dpkg, capsys: pytest.CaptureFixture[str], broken: str, words: str) -> None:
    dpkg.broken = broken
    said = run(capsys, patterns=["*"])
    assert said["failed"]
    assert words in said["msg"]
