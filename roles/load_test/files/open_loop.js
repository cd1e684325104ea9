// Copyright (c) 2026, gpufleet.deepseek contributors
// SPDX-License-Identifier: Apache-2.0
// The open-loop step with k6. Bodies and keys come from files that the runner names in the environment; neither is on a command line.
import http from 'k6/http';
import { Counter } from 'k6/metrics';

const job = JSON.parse(open(__ENV.GPUFLEET_K6_JOB));
const keys = Object.values(JSON.parse(open(job.keys)));
const ok = new Counter('answers_ok');
const rejected = new Counter('answers_rejected');
const failed = new Counter('answers_error');

export const options = {
  hosts: job.hosts,
  summaryTrendStats: ['avg', 'med', 'p(90)', 'p(99)', 'max'],
  scenarios: {
    open: {
      executor: 'constant-arrival-rate',
      rate: job.per_minute,
      timeUnit: '1m',
      duration: `${job.seconds}s`,
      preAllocatedVUs: Math.min(job.senders, 20),
      maxVUs: job.senders,
      gracefulStop: `${job.drain}s`,
    },
  },
  thresholds: { answers_error: [{ threshold: `count<=${job.most_errors}`, abortOnFail: true, delayAbortEval: '2s' }] },
};

export default function () {
  const body = job.bodies[Math.floor(Math.random() * job.bodies.length)];
  const answer = http.post(job.url, body, {
    headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${keys[__VU % keys.length]}` },
    timeout: `${job.timeout}s`,
    responseType: 'text',
  });
  if ((answer.status === 429 || answer.status === 503) && answer.headers['Retry-After'] !== undefined) {
    rejected.add(1);
  } else if (answer.status === 200 && (answer.body.includes('[DONE]') || answer.body.includes('"choices"'))) {
    ok.add(1);
  } else {
    failed.add(1);
  }
}
