"""Mutation testing of the mathematics: which small faults in its source no test would notice.

    python tests/mutation.py                               # a sample of 250 of all mutants
    python tests/mutation.py --package scheduling/timetable.py  # all of one, or a sample of it
    python tests/mutation.py tests/test_paths.py --sample 40
    python tests/mutation.py --mutants 17 203             # these two alone

A sample of the mutants (tests/mutants.py) is drawn with a fixed seed. The tests run once, to learn
which of them run which line and how long they take. Then, for each mutant, a forked process gets
the function with the fault, and runs the tests of its line until one fails: first a case of each
test, the quickest first, then another of each. So no mutant costs an import or a collection of
tests.

It ends with a table: for each package the mutants tried and killed. Mutants come in the order in
which they were drawn, so that a run that is stopped by Ctrl-C leaves a smaller sample.
"""

import argparse
import functools
import gc
import itertools
import math
import os
import random
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import FunctionType

import coverage
import pytest
from mutants import MUTATED, SOURCE, mutants

#: Tests of the mathematics and of what is made of it, without training and pipelines.
TESTS = [
    f"tests/test_{name}.py"
    for name in (
        *("paths", "predictions", "diffusions", "grids", "named_grids", "noise_levels", "forms"),
        *("solvers", "multistep", "plans", "fitting", "adaptive", "tables", "calibration_rows"),
        *("objectives", "scheduler_config", "transition", "sampling_path", "noising"),
        *("flow_map_sampling", "parity", "reference_results", "brownian", "calibration"),
        *("config_checks", "wrong_arguments", "families", "swap_keys", "swap_grids", "scheduler"),
        "timetable",
    )
]
#: A forked process cannot use the threads that its parent has started: it would wait for ever.
THREADS = "tests/test_reference_results.py::test_threads_change_no_bit"
#: Seconds of tests that a mutant is given, and those after which one test is without an end.
MOST, ENDLESS = 10, 60


class Mutation:
    """A plugin of pytest that runs the tests once, and then some of them for each mutant."""

    def __init__(self, sample):
        self.sample, self.result = sample, {}

    def pytest_runtestloop(self, session):
        """Learn what runs what, and try the mutants."""
        runs = self.learn(session)
        self.caches, self.functions = [], defaultdict(list)
        for found in gc.get_objects():
            if type(found) is functools._lru_cache_wrapper:
                self.caches.append(found)
            elif type(found) is FunctionType:
                self.functions[found.__code__].append(found)
        if self.tried(session, None, session.items) == "killed":
            raise pytest.UsageError("a test fails in a forked process without a fault")
        for number, mutant in self.sample:
            items = {item: None for line in mutant.lines for item in runs[mutant.file, line]}
            self.result[number] = self.tried(session, mutant, [*items])
            print(f"{number:4d} {self.result[number]:8s} {mutant}", flush=True)
        return True

    def learn(self, session):
        """Return the tests of each line of a file, in the order in which they are to run."""
        where = [str(SOURCE / (name if "." in name else f"{name}/*")) for name in MUTATED]
        lines = coverage.Coverage(data_file=None, config_file=False, include=where)
        taken = {}
        lines.start()
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            lines.switch_context(item.nodeid)
            start = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            taken[item.nodeid] = time.process_time() - start
        lines.stop()
        if session.testsfailed:
            raise pytest.UsageError("tests fail without a fault: mend these first")
        session.items.sort(key=lambda item: taken[item.nodeid])
        runs, data = defaultdict(list), lines.get_data()
        for file in data.measured_files():
            for line, names in data.contexts_by_lineno(file).items():
                names = set(names)
                of_line = [item for item in session.items if item.nodeid in names]
                runs[Path(file), line] = by_turns(of_line)
        return runs

    def tried(self, session, mutant, items):
        """Return what became of a mutant in a process of its own."""
        if not items:
            return "not run"
        child = os.fork()
        if child == 0:
            os._exit(self.is_killed(session, mutant, items))
        status = os.waitpid(child, 0)[1]
        return "killed" if os.waitstatus_to_exitcode(status) else "survived"

    def is_killed(self, session, mutant, items):
        """Run tests with a fault, in this process; return whether one of them fails."""
        resource.setrlimit(resource.RLIMIT_CPU, (MOST + ENDLESS, MOST + ENDLESS))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1), os.dup2(silent, 2)
        for cached in self.caches:
            cached.cache_clear()
        if mutant is not None:
            for before, after in mutant.codes():
                for function in self.functions[before]:
                    function.__code__ = after
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed or time.process_time() > MOST:
                break
        return session.testsfailed > 0


def by_turns(items):
    """Return a case of each test, in the order that they have, then a second of each, and on."""
    cases = defaultdict(itertools.count)
    return sorted(items, key=lambda item: next(cases[item.nodeid.partition("[")[0]]))


def table(sample, result):
    """Return the rows of the table, and the share of all mutants with its interval of 95 %."""
    rows = ["| source | mutants tried | killed |", "|---|---|---|"]
    for package in MUTATED:
        tried = [n for n, mutant in sample if n in result and mutant.package == package]
        killed = sum(result[number] == "killed" for number in tried)
        rows.append(f"| `{package}` | {len(tried)} | {killed} |")
    n, k = len(result), sum(kind == "killed" for kind in result.values())
    z, most = 1.96, n + 1.96**2  # Wilson's interval
    centre, half = (k + z**2 / 2) / most, z / most * math.sqrt(k * (n - k) / n + z**2 / 4)
    rows.append(f"| all | {n} | {k}: {centre - half:.1%} to {centre + half:.1%} |")
    return "\n".join(rows)


def main():
    """Try a sample, or some mutants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tests", nargs="*", default=TESTS)
    parser.add_argument("--sample", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--package", choices=MUTATED)
    parser.add_argument("--mutants", type=int, nargs="+", help="by their numbers")
    args = parser.parse_args()
    everything = mutants()
    numbers = [n for n, m in enumerate(everything) if args.package in (None, m.package)]
    chosen = random.Random(args.seed).sample(numbers, min(args.sample, len(numbers)))
    sample = [(number, everything[number]) for number in args.mutants or chosen]
    print(f"{len(sample)} of {len(everything)} mutants", flush=True)
    plugin = Mutation(sample)
    words = ["-q", "-s", "-p", "no:cacheprovider", f"--deselect={THREADS}", *args.tests]
    pytest.main(words, plugins=[plugin])
    print(table(sample, plugin.result))
    sys.exit(any(kind != "killed" for kind in plugin.result.values()))


if __name__ == "__main__":
    main()
