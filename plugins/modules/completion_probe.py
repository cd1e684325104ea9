#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: completion_probe
short_description: Ask an OpenAI-compatible endpoint real questions and measure the answers
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Lists the models, asks for one JSON and one streamed chat completion, then sends a number of one-token requests and counts which
    peer of the gateway answered each.
  - Fails when an answer is not what a client needs. With O(weights) it also fails when a peer's share is not its weight's share.
options:
  url:
    description: Base URL of the endpoint, without a path.
    type: str
    required: true
  api_key:
    description: Bearer token.
    type: str
    default: ""
  ca_pem:
    description: Certificates to trust, in PEM form. Empty for the system's trust store.
    type: str
    default: ""
  validate_certs:
    description: Whether the certificate of the endpoint is verified.
    type: bool
    default: true
  model:
    description: Model to ask. Empty for the first one that the endpoint lists.
    type: str
    default: ""
  prompt:
    description: What to ask.
    type: str
    default: Say hello in one short sentence.
  max_tokens:
    description: Longest answer in tokens.
    type: int
    default: 32
  requests:
    description: Number of one-token requests that measure the peers' shares.
    type: int
    default: 0
  weights:
    description: Weight by peer name, of the peers that should answer.
    type: dict
    default: {}
  share_tolerance:
    description: Allowed absolute difference between a peer's share of the answers and its share of the weights, between 0 and 1.
    type: float
    default: 0.15
  settle:
    description:
      - Seconds for which the shares are measured again and again when the first measurement does not fit.
      - A gateway leaves a peer alone for a while after failures; a peer that has just come back needs that long to get its share.
    type: int
    default: 0
  peer_header:
    description: Response header in which the gateway tells an operator which peer answered.
    type: str
    default: X-Gateway-Peer
  timeout:
    description: Seconds for a connection and for each read.
    type: int
    default: 60
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Ask the gateway as a client would
  gpufleet.deepseek.completion_probe:
    url: https://192.0.2.10
    api_key: "{{ fleet_api_key }}"
    ca_pem: "{{ lookup('ansible.builtin.file', 'files/ca.crt') }}"
    requests: 20
    weights: {gpu1: 3, gpu2: 2}
  delegate_to: localhost
"""

RETURN = r"""
problems:
  description: What is not as it should be, a sentence each. The module fails when there is one.
  returned: always
  type: list
  elements: str
  sample: []
models:
  description: Models that the endpoint lists.
  returned: when they could be listed
  type: list
  elements: str
  sample: [smollm2-135m-instruct]
model:
  description: The model that was asked.
  returned: when the endpoint answered
  type: str
  sample: smollm2-135m-instruct
answer:
  description: Text of the JSON completion.
  returned: when the endpoint answered
  type: str
  sample: Hello!
answer_seconds:
  description: Seconds until the JSON completion was read.
  returned: when the endpoint answered
  type: float
  sample: 0.412
completion_tokens:
  description: Tokens of the JSON completion, as the endpoint counts them.
  returned: when the endpoint answered
  type: int
  sample: 9
stream_chunks:
  description: Chunks with text in the streamed completion.
  returned: when the endpoint answered
  type: int
  sample: 9
stream_seconds:
  description: Seconds until the stream ended.
  returned: when the endpoint answered
  type: float
  sample: 0.398
ttft_seconds:
  description: Seconds until the first chunk with text.
  returned: when the endpoint answered
  type: float
  sample: 0.081
summary:
  description: All of it in one line for people.
  returned: when the endpoint answered
  type: str
  sample: "smollm2-135m-instruct: 9 tokens in 0.41 s; stream of 9 chunks, first after 0.08 s; answered by gpu1 12, gpu2 8"
peers:
  description: Number of answers by peer.
  returned: when the endpoint answered
  type: dict
  sample: {gpu1: 12, gpu2: 8}
statuses:
  description: Number of answers by HTTP status.
  returned: when the endpoint answered
  type: dict
  sample: {"200": 20}
"""

import time
from http.client import HTTPException

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import (
    Endpoint,
    ProbeError,
    measure_peers,
    probe,
    share_problems,
)

# Seconds between two measurements.
_PAUSE = 3.0


def main() -> None:
    """Ask, measure, judge."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "ca_pem": {"type": "str", "default": ""},
            "validate_certs": {"type": "bool", "default": True},
            "model": {"type": "str", "default": ""},
            "prompt": {"type": "str", "default": "Say hello in one short sentence."},
            "max_tokens": {"type": "int", "default": 32, "no_log": False},
            "requests": {"type": "int", "default": 0},
            "weights": {"type": "dict", "default": {}},
            "share_tolerance": {"type": "float", "default": 0.15},
            "settle": {"type": "int", "default": 0},
            "peer_header": {"type": "str", "default": "X-Gateway-Peer"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    endpoint = Endpoint(p["url"].rstrip("/"), p["api_key"], p["ca_pem"], p["validate_certs"], float(p["timeout"]))
    weights = {name: int(weight) for name, weight in p["weights"].items()}
    shares: list[str] = []
    try:
        result = probe(endpoint, p["model"], p["prompt"], p["max_tokens"], p["requests"], p["peer_header"])
        if weights and p["requests"]:
            shares = share_problems(result.peers, weights, p["share_tolerance"])
            end = time.monotonic() + p["settle"]
            while shares and time.monotonic() < end:
                # The requests of a measurement are what a breaker tries a peer with that has come back.
                time.sleep(min(_PAUSE, max(0.0, end - time.monotonic())))
                measure_peers(endpoint, result, p["requests"], p["peer_header"])
                shares = share_problems(result.peers, weights, p["share_tolerance"])
    except (ProbeError, OSError, HTTPException) as exc:
        module.fail_json(msg=f"{p['url']}: {exc}", problems=[f"{p['url']}: {exc}"], failed=True)
    problems = [
        f"{n} of {p['requests']} requests were answered with status {status}; expected 200"
        for status, n in result.statuses.items()
        if status != "200"
    ]
    problems += shares
    if problems:
        module.fail_json(msg=f"{p['url']}: " + "; ".join(problems), problems=problems, failed=True, **result.as_dict())
    module.exit_json(changed=False, failed=False, problems=[], **result.as_dict())


if __name__ == "__main__":
    main()
