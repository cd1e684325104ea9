#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: quality_answers
short_description: Ask an engine the questions of the quality probe
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Sends each question of a suite once, at temperature 0, within a budget of tokens and time, and returns the answers.
  - They are judged by M(gpufleet.deepseek.quality_verdict), on the host that has the baselines.
  - Fails when a question is not answered, also not at the second try.
options:
  url:
    description: Base URL of the engine, without a path.
    type: str
    required: true
  api_key:
    description: Bearer token.
    type: str
    default: ""
  model:
    description: Model to ask. Empty for the first one that the engine lists.
    type: str
    default: ""
  suite:
    description: The questions, as in the file of role C(quality_probe), with C(version) and C(items).
    type: dict
    required: true
  items:
    description: Ids of the questions to ask. Empty for all.
    type: list
    elements: str
    default: []
  parallel:
    description: Requests at a time, 1 to 32.
    type: int
    default: 2
  timeout:
    description: Seconds for one answer.
    type: float
    default: 60
  seconds:
    description: Seconds after which no request is begun any more.
    type: float
    default: 300
  tokens:
    description: Tokens of prompts and answers that may be used.
    type: int
    default: 20000
  thinking_tokens:
    description: Tokens that a reasoning model may think in addition to each answer.
    type: int
    default: 0
  extra:
    description: More keys of each request, for what only one engine knows, such as C(cache_prompt) of llama.cpp.
    type: dict
    default: {}
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Ask the new engine
  gpufleet.deepseek.quality_answers:
    url: http://192.0.2.21:8000
    api_key: "{{ fleet_api_key }}"
    suite: "{{ lookup('ansible.builtin.file', 'suite.json') | from_json }}"
  register: answered
"""

RETURN = r"""
answers:
  description: For each question its C(id), the C(text) of the answer, the C(model), C(finish), C(tokens) and C(error).
  returned: always
  type: list
  elements: dict
  sample: [{id: fact-en-01, text: Paris, model: deepseek-r1, finish: stop, tokens: 24, error: ""}]
tokens:
  description: Tokens that were used.
  returned: always
  type: int
  sample: 4566
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import Endpoint
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_ask import Budget, ask_suite
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import QualityError, load_suite


def main() -> None:
    """Ask, and return what was said."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "model": {"type": "str", "default": ""},
            "suite": {"type": "dict", "required": True},
            "items": {"type": "list", "elements": "str", "default": []},
            "parallel": {"type": "int", "default": 2},
            "timeout": {"type": "float", "default": 60},
            "seconds": {"type": "float", "default": 300},
            "tokens": {"type": "int", "default": 20000, "no_log": False},
            "thinking_tokens": {"type": "int", "default": 0, "no_log": False},
            "extra": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    p = module.params
    try:
        suite = load_suite(p["suite"], p["items"])
        if not 1 <= p["parallel"] <= 32:
            raise QualityError(f"parallel: expected a whole number from 1 to 32, found {p['parallel']}")
    except QualityError as exc:
        module.fail_json(msg=str(exc))
    endpoint = Endpoint(p["url"].rstrip("/"), p["api_key"], timeout=p["timeout"])
    budget = Budget(p["tokens"], p["seconds"])
    answers = ask_suite([endpoint], p["model"], suite, budget, p["parallel"], p["thinking_tokens"], p["extra"])
    result = {"answers": [one.as_dict() for one in answers], "tokens": budget.used}
    wrong = [one for one in answers if one.error]
    if wrong:
        module.fail_json(
            msg=f"{p['url']}: {len(wrong)} of {len(answers)} questions were not answered; {wrong[0].id}: {wrong[0].error}",
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
