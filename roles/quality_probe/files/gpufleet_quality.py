# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The quality probe: ask the frozen questions, score the answers, compare them with the release's baseline.

``run`` is what the timer starts, ``baseline`` what playbook quality_baseline.yml starts, ``judge`` what upgrade.yml asks, ``show`` is for people. The
code that knows about questions and scores is that of the collection's modules and lies in a directory beside this file. Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
import typing as t

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _quality_probe as probes
from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import ProbeError
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_ask import answers_from, first_model
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import QualityError

# 13a splits words at blanks and punctuation, and finds no word in Chinese: there characters count.
_TOKENIZERS = {"en": "13a", "zh": "zh"}
_LOCK_SECONDS = 60.0


class Sacrebleu:
    """BLEU and chrF of a corpus, as sacrebleu counts them."""

    def score(
        self, language: str, answers: t.Sequence[str], references: t.Sequence[t.Sequence[str]]
    ) -> dict[str, float]:
        """Both scores, 0 to 100. Items may have different numbers of references."""
        most = max(len(one) for one in references)
        # sacrebleu wants as many references for each; one that is there twice counts once.
        streams = [[one[min(number, len(one) - 1)] for one in references] for number in range(most)]
        bleu = BLEU(tokenize=_TOKENIZERS[language])
        chrf = CHRF()
        return {
            "bleu": float(bleu.corpus_score(list(answers), streams).score),
            "chrf": float(chrf.corpus_score(list(answers), streams).score),
        }

    def signatures(self, languages: t.Sequence[str]) -> dict[str, str]:
        """Signatures of both scores by language, for one reference."""
        result = {}
        for language in languages:
            bleu = BLEU(tokenize=_TOKENIZERS[language])
            chrf = CHRF()
            bleu.corpus_score(["a"], [["a"]])
            chrf.corpus_score(["a"], [["a"]])
            result[language] = f"BLEU|{bleu.get_signature()} chrF|{chrf.get_signature()}"
        return result


@contextlib.contextmanager
def alone(places: probes.Places, seconds: float) -> t.Iterator[bool]:
    """Whether this process is the only one that asks; waits for the other one for some seconds."""
    with open(os.open(places.state("lock"), os.O_RDWR | os.O_CREAT, 0o640), "w", encoding="utf-8") as stream:
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= until:
                    yield False
                    return
                time.sleep(0.5)
            else:
                yield True
                return


def command_run(places: probes.Places) -> int:
    """One run of the timer."""
    with alone(places, _LOCK_SECONDS) as mine:
        if not mine:
            print("a baseline is being made: nothing was asked")
            return 0
        probe = probes.Probe(places, Sacrebleu())
        state = probe.run()
    if state["exhausted"]:
        print(state["exhausted"])
        return 0
    run, scored = state["run"], state.get("scored") or {}
    print(f"{run['requests']} requests, {run['tokens']} tokens, {run['seconds']:.1f} s, {run['errors']} errors")
    if run["errors"]:
        print(f"not scored: {run['error']}")
    elif scored["missing"]:
        print(f"not compared: {scored['missing']}")
    for problem in [] if run["errors"] else scored["problems"]:
        print(problem)
    return 0


def command_baseline(places: probes.Places, seconds: float) -> int:
    """Make runs for a baseline; one JSON line at the end."""
    with alone(places, seconds) as mine:
        if not mine:
            print(json.dumps({"complete": False, "made": 0, "runs": 0, "wanted": 0, "problem": "", "release": ""}))
            return 0
        probe = probes.Probe(places, Sacrebleu())
        print(json.dumps(probe.make_baseline(seconds, lambda line: print(line, file=sys.stderr))))
    return 0


def command_forget(places: probes.Places) -> int:
    """Remove the baseline of the release that serves."""
    with alone(places, _LOCK_SECONDS) as mine:
        if not mine:
            raise QualityError("a run is under way: nothing was removed")
        removed = probes.Probe(places, Sacrebleu()).forget_baseline()
    print("removed" if removed else "there was none")
    return 0


def command_hold(places: probes.Places, seconds: float) -> int:
    """Compare nothing while hosts are changed."""
    probes.Probe(places, Sacrebleu()).hold(seconds)
    return 0


def command_judge(places: probes.Places) -> int:
    """Compare answers on standard input with a baseline; the verdict as JSON."""
    asked = json.load(sys.stdin)
    probe = probes.Probe(places, Sacrebleu())
    verdict = probe.judge(asked["release"], answers_from(asked["answers"]), bool(asked["drift"]))
    print(json.dumps(verdict.as_dict()))
    return 0


def command_show(places: probes.Places, answers: bool) -> int:
    """The last run for people."""
    probe = probes.Probe(places, Sacrebleu())
    sys.stdout.write(probe.table())
    if answers:
        kept = probes.read_json(places.state("answers.json")) or {"answers": []}
        baseline, _missing = probe.baseline(probe.release)
        by_id = {item.id: item for item in probe.suite.items}
        for one in kept["answers"]:
            if one["id"] in by_id:
                print(f"\n{one['id']}: {by_id[one['id']].prompt}")
                print(f"  now ({one['finish'] or 'no answer'}): {one['error'] or one['text']}")
                if baseline:
                    print(f"  baseline: {baseline.answers[one['id']]}")
    return 0


def command_check(places: probes.Places, ask: bool) -> int:
    """Say what would be asked, or what is wrong with the configuration. The exit code is 3 when nobody answers."""
    probe = probes.Probe(places, Sacrebleu())
    needs = probes.run_needs(probe.suite, probe.settings.thinking_tokens)
    print(f"suite {probe.suite.label}: {len(probe.suite.items)} items, {needs} tokens at most")
    if ask:
        try:
            print(f"the model {probe.settings.model or first_model(probe.endpoints())} is asked")
        except ProbeError as exc:
            print(exc, file=sys.stderr)
            return 3
    return 0


def main(argv: t.Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="quality_probe", description="Ask the frozen questions and compare the answers with the baseline."
    )
    parser.add_argument("--config-dir", default=probes.Places.config_dir)
    parser.add_argument("--state-dir", default=probes.Places.state_dir)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="one run, as the timer makes them")
    making = commands.add_parser("baseline", help="make runs for the baseline of the release that serves")
    making.add_argument("--seconds", type=float, default=240.0, help="begin no run after that")
    commands.add_parser("forget", help="remove the baseline of the release that serves, for a new one")
    holding = commands.add_parser("hold", help="compare nothing for a while, or until another release serves")
    holding.add_argument("--seconds", type=float, default=7200.0)
    commands.add_parser("judge", help="compare answers on standard input")
    showing = commands.add_parser("show", help="the last run beside the baseline")
    showing.add_argument("--answers", action="store_true", help="with questions and answers")
    checking = commands.add_parser("check", help="check the configuration")
    checking.add_argument("--ask", action="store_true", help="and whether the gateways answer")
    wish = parser.parse_args(argv)
    os.umask(0o027)
    places = probes.Places(wish.config_dir, wish.state_dir)
    try:
        return int(
            {
                "run": lambda: command_run(places),
                "baseline": lambda: command_baseline(places, wish.seconds),
                "forget": lambda: command_forget(places),
                "hold": lambda: command_hold(places, wish.seconds),
                "judge": lambda: command_judge(places),
                "show": lambda: command_show(places, wish.answers),
                "check": lambda: command_check(places, wish.ask),
            }[wish.command]()
        )
    except (QualityError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
