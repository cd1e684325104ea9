#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: quality_verdict
short_description: Compare answers with the baseline of a release
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Hands answers of M(gpufleet.deepseek.quality_answers) to the program of role C(quality_probe), which scores them and knows the baselines.
  - Fails when a score is beyond the noise of the baseline. Without a baseline that counts it compares nothing and says why.
options:
  argv:
    description: The program with its directories, as the role installed it.
    type: list
    elements: str
    default: [/usr/local/bin/quality_probe]
  release:
    description: Release whose baseline counts.
    type: str
    required: true
  answers:
    description: The answers.
    type: list
    elements: dict
    required: true
  drift:
    description: Whether the answers must be in the words of the baseline, and as long. Not for another release, which may answer better.
    type: bool
    default: true
  fail:
    description: Whether the module fails when a score is beyond noise. When not, RV(problems) tells.
    type: bool
    default: true
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Compare the new engine with the release before
  gpufleet.deepseek.quality_verdict:
    release: deepseek-r1-1f2e3d
    answers: "{{ answered.answers }}"
    drift: false
  delegate_to: mon1
"""

RETURN = r"""
scores:
  description: Each score by language and name. BLEU and chrF from 0 to 100, shares from 0 to 1, length in characters.
  returned: always
  type: dict
  sample: {en.exact: 0.9, en.reference_bleu: 31.2}
beyond:
  description: Names of the scores that are beyond noise.
  returned: always
  type: list
  elements: str
  sample: [en.exact]
problems:
  description: The same in sentences.
  returned: always
  type: list
  elements: str
  sample: ["en exact is 0.2, the baseline's mean is 0.9 and at least 0.75 is noise"]
missing:
  description: Why nothing was compared; empty when it was.
  returned: always
  type: str
  sample: there is no baseline of this release
"""

import json

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Hand the answers over and pass the verdict on."""
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str", "default": ["/usr/local/bin/quality_probe"]},
            "release": {"type": "str", "required": True},
            "answers": {"type": "list", "elements": "dict", "required": True},
            "drift": {"type": "bool", "default": True},
            "fail": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    asked = json.dumps({"release": p["release"], "answers": p["answers"], "drift": p["drift"]})
    code, out, err = module.run_command([*p["argv"], "judge"], data=asked, binary_data=False)
    try:
        verdict = json.loads(out) if code == 0 else {}
    except ValueError:
        verdict = {}
    if not isinstance(verdict, dict) or "problems" not in verdict:
        found = (err or out).strip()[-400:]
        module.fail_json(msg=f"expected a verdict of {p['argv'][0]}, found exit code {code}: {found}")
    if verdict["problems"] and p["fail"]:
        module.fail_json(
            msg=f"the answers are worse than those of {p['release']}, beyond noise: {'; '.join(verdict['problems'])}",
            **verdict,
        )
    module.exit_json(changed=False, **verdict)


if __name__ == "__main__":
    main()
