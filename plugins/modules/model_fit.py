#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_fit
short_description: Plan how a model is served by a fleet, or say with numbers why it cannot be
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Works out which engine serves a model in which precision on which hosts, how it is cut over their GPUs, what memory that takes, how many
    requests it carries and how fast it is expected to be.
  - Refuses what cannot work (memory, GPU architecture, tensor parallelism, mixed GPUs, no RDMA, context, targets) with the numbers behind it
    and the nearest plan that works.
  - Runs on the controller, once, for all hosts, from their hardware facts; it never connects to one.
  - Speeds are a roofline with stated efficiencies, meant for planning; P(gpufleet.deepseek.model_fit#module) names them in its result.
options:
  model:
    description:
      - A model of the catalogue, such as V(deepseek-r1); an unknown one is answered with the list.
      - With O(config), the name that the plan uses.
    type: str
    required: true
  config:
    description: A Hugging Face config.json of a model that is not in the catalogue, as a mapping or as the path of the file on the controller.
    type: raw
  hosts:
    description: Inventory names of the hosts to plan with. All hosts of the play when left out.
    type: list
    elements: str
  facts:
    description:
      - Name of the host variable that holds what M(gpufleet.deepseek.hardware_info) returned.
      - Or a mapping of these structures by inventory name.
    type: raw
    default: fleet_hardware
  engine:
    description: The engine; V(auto) takes the first of the catalogue that fits.
    type: str
    default: auto
  precision:
    description: Precision of the weights, such as V(bf16), V(fp8), V(int8), V(awq); V(auto) takes what needs the fewest hosts for a replica.
    type: str
    default: auto
  kv_dtype:
    description: Precision of the KV cache.
    type: str
    choices: [auto, fp16, bf16, fp8]
    default: auto
  tensor_parallel:
    description: GPUs over which each layer is cut. 0 leaves the choice to the planner.
    type: int
    default: 0
  pipeline_parallel:
    description: Stages into which the layers are cut. 0 leaves the choice to the planner.
    type: int
    default: 0
  hosts_per_replica:
    description: Hosts that one copy of the model spans. 0 leaves the choice to the planner.
    type: int
    default: 0
  context_tokens:
    description: Tokens of the longest request, prompt and answer together. 0 means 8192 (1024 on a CPU), or what the model knows.
    type: int
    default: 0
  concurrency:
    description: Requests that one replica must hold in its KV cache at a time. 0 asks for none.
    type: int
    default: 0
  max_batch_size:
    description: Largest batch of an engine.
    type: int
    default: 64
  max_num_tokens:
    description: Tokens that an engine works on in one step, prompts included.
    type: int
    default: 8192
  memory_utilization:
    description: Share of a GPU's memory that the engine may use.
    type: float
    default: 0.9
  batch_wait_ms:
    description: Milliseconds that an engine waits for a batch to fill.
    type: int
    default: 5
  targets:
    description: What the service is to reach. 0 means not asked for.
    type: dict
    default: {}
    suboptions:
      requests_per_second:
        description: Requests per second of the whole fleet.
        type: float
        default: 0
      prompt_tokens:
        description: Tokens of a typical prompt.
        type: int
        default: 1024
      answer_tokens:
        description: Tokens of a typical answer.
        type: int
        default: 256
      first_token_ms:
        description: Milliseconds to the first token on an idle replica.
        type: float
        default: 0
      answer_ms:
        description: Mean milliseconds of a whole answer.
        type: float
        default: 0
      availability_percent:
        description: Availability over the window.
        type: float
        default: 0
      failover_minutes:
        description: Minutes that one failover takes.
        type: float
        default: 5
      window_days:
        description: Days of the window.
        type: float
        default: 30
  targets_action:
    description: V(fail) refuses a plan that misses a target, V(warn) says so and goes on.
    type: str
    choices: [fail, warn]
    default: fail
  gpu_overrides:
    description:
      - Values of GPUs that the catalogue does not know, by PCI id such as V(10de:2330).
      - Each has C(name), C(architecture), C(generation), C(memory_mib), C(bandwidth_gbs), C(fp16_tflops), C(fp8_tflops) and C(form) (C(sxm) or C(pcie)).
    type: dict
    default: {}
  report_json:
    description: File on the controller for the plan as JSON. Empty writes none.
    type: str
    default: ""
  report_html:
    description: File on the controller for the plan as one self-contained HTML page. Empty writes none.
    type: str
    default: ""
  show:
    description: Show the plan as a table on the screen.
    type: bool
    default: true
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
attributes:
  action:
    description: Has a corresponding action plugin, so it runs on the controller.
    support: full
notes:
  - The reports are output, as a log is. They do not count as a change, are written when their content differs and not in check mode,
    and one that cannot be written is a warning.
seealso:
  - module: gpufleet.deepseek.hardware_info
  - module: gpufleet.deepseek.fleet_homogeneity
"""

EXAMPLES = r"""
- name: Plan DeepSeek-R1 on the GPU hosts
  gpufleet.deepseek.model_fit:
    model: deepseek-r1
    hosts: "{{ groups['gpu_hosts'] }}"
    targets:
      requests_per_second: 3
      prompt_tokens: 512
  register: plan
  run_once: true

- name: Plan a model that the catalogue does not know
  gpufleet.deepseek.model_fit:
    model: our-finetune
    config: /srv/models/our-finetune/config.json
    precision: bf16
  run_once: true
"""

RETURN = r"""
plan:
  description:
    - The plan. Sizes are GiB, times are seconds, speeds are tokens or requests per second unless a key says otherwise.
    - With RV(plan.verdict=refused), C(refusals) holds code, sentence and nearest plan of each reason.
  returned: always
  type: dict
  contains:
    verdict:
      description: C(ok) or C(refused).
      returned: always
      type: str
    engine:
      description: The engine.
      returned: when there is a plan
      type: str
    precision:
      description: Precision of the weights.
      returned: when there is a plan
      type: str
    tensor_parallel:
      description: GPUs over which each layer is cut.
      returned: when there is a plan
      type: int
    hosts_per_replica:
      description: Hosts of one replica.
      returned: when there is a plan
      type: int
    replicas:
      description: Each with C(name), C(region), C(hosts), C(leader) and C(kind), an index into C(kinds).
      returned: when there is a plan
      type: list
      elements: dict
    kinds:
      description: For each kind of host, how a replica is cut, its memory per device, KV cache, sequences and speed. The first is also at the top.
      returned: when there is a plan
      type: list
      elements: dict
    peers:
      description: For each host that answers requests, C(weight), C(token_capacity), C(max_sequences), C(context_tokens), C(region) and C(replica).
      returned: when there is a plan
      type: dict
    limits:
      description: C(max_batch_size), C(batch_sizes), C(batch_wait_ms) and C(max_num_tokens).
      returned: when there is a plan
      type: dict
    fleet:
      description: C(replicas), C(requests_at_a_time), C(requests_per_second) and C(tokens_per_second) of all replicas.
      returned: when there is a plan
      type: dict
    spare:
      description: Hosts that serve nothing, with the reason.
      returned: when there is a plan
      type: list
      elements: dict
    decisions:
      description: A sentence for each decision.
      returned: when there is a plan
      type: list
      elements: str
reports:
  description: The reports that were asked for and could be written.
  returned: always
  type: list
  elements: str
msg:
  description: One line for each reason of a refusal, or one about the plan.
  returned: always
  type: str
  sample: "deepseek-r1: sglang with awq weights, tensor parallel 8, 3 replicas on 3 hosts, 192 requests at a time, 3.5 requests per second"
table:
  description: What was shown on the screen, line by line.
  returned: always
  type: list
  elements: str
"""
