#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: engine_canary
short_description: Ask an engine known questions and compare it with the release before
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Sends streamed chat completions at temperature 0, and looks at errors, at the text of the answers, and at the times of the tokens.
  - Fails when requests fail, when an answer is not what was expected, or when the engine is slower than O(baseline) allows.
  - A reasoning model's thoughts count as a part of its answer.
  - Run it where no other requests reach the engine, once before a change and once after it, so that two equal things are compared.
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
    description: Model to ask.
    type: str
    required: true
  questions:
    description: What is asked.
    type: list
    elements: dict
    required: true
    suboptions:
      prompt:
        description: The question.
        type: str
        required: true
      expect:
        description: Regular expression that must be found in the answer, of whatever case.
        type: str
        required: true
      max_tokens:
        description: Longest answer in tokens.
        type: int
        default: 64
  requests:
    description: How many requests are sent. The questions are asked again and again. V(0) asks nothing.
    type: int
    default: 8
  parallel:
    description: How many of them at a time.
    type: int
    default: 1
  baseline:
    description: RV(measured) of an earlier task. Empty, or one in which no request was answered, compares nothing.
    type: dict
    default: {}
  latency_ratio:
    description: By how much the median time to the first token, and of each further token, may grow.
    type: float
    default: 1.5
  latency_slack_ms:
    description: What both may grow by in any case, in milliseconds. Short times are mostly noise.
    type: float
    default: 250
  error_percent:
    description: Share of the requests that may fail, in percent.
    type: float
    default: 0
  fail:
    description: Whether the module fails when something is not as it should be. When not, RV(problems) tells.
    type: bool
    default: true
  timeout:
    description: Seconds for a connection and for each read.
    type: int
    default: 120
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Measure the release that serves, while the host is drained
  gpufleet.deepseek.engine_canary:
    url: http://192.0.2.21:8000
    api_key: "{{ fleet_api_key }}"
    model: deepseek-r1
    requests: 12
    fail: false
    questions:
      - prompt: What is the capital of France?
        expect: Paris
  register: before

- name: Compare the new one with it
  gpufleet.deepseek.engine_canary:
    url: http://192.0.2.21:8000
    api_key: "{{ fleet_api_key }}"
    model: deepseek-r1
    requests: 12
    baseline: "{{ before.measured }}"
    questions:
      - prompt: What is the capital of France?
        expect: Paris
"""

RETURN = r"""
problems:
  description: What is not as it should be, a sentence each.
  returned: always
  type: list
  elements: str
  sample: ["the first token takes 900 ms, it took 200 ms before; at most 550 ms are allowed"]
measured:
  description:
    - What was seen. C(requests), C(errors) and C(wrong) answers are counts; C(ttft_seconds), C(itl_seconds) and C(answer_seconds) are medians;
      C(tokens_per_second) is what one request gets; C(samples) are the beginnings of the answers, one for each question.
  returned: always
  type: dict
  sample: {requests: 12, errors: 0, wrong: 0, ttft_seconds: 0.2, itl_seconds: 0.02, answer_seconds: 1.5, tokens_per_second: 50.0, samples: [Paris.]}
summary:
  description: All of it in one line for people.
  returned: always
  type: str
  sample: 12 of 12 requests answered, 0 wrong; first token after 200 ms, then one each 20.0 ms
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import Endpoint, ProbeError
from ansible_collections.gpufleet.deepseek.plugins.module_utils._engine_canary import (
    CanaryError,
    Limits,
    measure,
    problems,
    questions,
    run,
)


def main() -> None:
    """Ask, measure, compare."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "model": {"type": "str", "required": True},
            "questions": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "prompt": {"type": "str", "required": True},
                    "expect": {"type": "str", "required": True},
                    "max_tokens": {"type": "int", "default": 64, "no_log": False},
                },
            },
            "requests": {"type": "int", "default": 8},
            "parallel": {"type": "int", "default": 1},
            "baseline": {"type": "dict", "default": {}},
            "latency_ratio": {"type": "float", "default": 1.5},
            "latency_slack_ms": {"type": "float", "default": 250},
            "error_percent": {"type": "float", "default": 0},
            "fail": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    p = module.params
    limits = Limits(p["latency_ratio"], p["latency_slack_ms"] / 1000, p["error_percent"])
    endpoint = Endpoint(p["url"].rstrip("/"), p["api_key"], timeout=float(p["timeout"]))
    try:
        asked = questions(p["questions"])
        for name, low, high in (("requests", 0, 10000), ("parallel", 1, 1000)):
            if not low <= p[name] <= high:
                raise CanaryError(f"{name}: expected a whole number from {low} to {high}, found {p[name]}")
        if p["requests"] and not asked:
            raise CanaryError("questions: expected at least one, found none")
        answers = run(endpoint, p["model"], asked, p["requests"], p["parallel"]) if p["requests"] else []
    except (CanaryError, ProbeError) as exc:
        module.fail_json(msg=str(exc))
    found = measure(answers)
    wrong = problems(answers, found, limits, p["baseline"])
    result = {"problems": wrong, "measured": found.as_dict(), "summary": found.summary()}
    if wrong and p["fail"]:
        module.fail_json(msg=f"{p['url']}: {'; '.join(wrong)}", **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
