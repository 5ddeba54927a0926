"""`make fuzz`: every property test on random examples, in rounds, until the time is over or a round fails.

A round is one run of pytest with a seed: the first with the given one, each later one with the next number. So a round that fails is
repeated by its seed alone. Hash order goes by the seed too.
"""

import argparse
import os
import secrets
import subprocess
import sys
import time

SEEDS = 2**32
"""PYTHONHASHSEED takes no more."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=None, help="of the first round, 0 to 4294967295 (default: a random one)"
    )
    parser.add_argument("--time", type=float, default=600.0, help="no round begins after so many seconds; 0: one round")
    parser.add_argument("--workers", default="auto", help="processes (default: one a core)")
    parser.add_argument("tests", nargs="*", default=["tests"], help="files, folders or names of tests (default: all)")
    given = parser.parse_args()
    seed = secrets.randbelow(SEEDS) if given.seed is None else given.seed
    if not 0 <= seed < SEEDS:
        parser.error(f"--seed is {seed}; it has to be from 0 to {SEEDS - 1}")
    begun = time.monotonic()
    rounds = 0
    while True:
        rounds += 1
        print(f"fuzz: round {rounds}, seed {seed}", flush=True)
        code = play(seed, given.workers, given.tests)
        passed_s = time.monotonic() - begun
        if code != 0:
            again = " ".join(["make fuzz", f"SEED={seed}", "TIME=0", *_narrowed(given.tests)])
            print(f"fuzz: seed {seed} failed after {passed_s:.0f} s; the same again: {again}", flush=True)
            return code
        if passed_s >= given.time:
            print(f"fuzz: nothing found in {rounds} rounds, {passed_s:.0f} s", flush=True)
            return 0
        seed = (seed + 1) % SEEDS


def play(seed: int, workers: str, tests: list[str]) -> int:
    """One round; pytest's exit code."""
    command = [
        *(sys.executable, "-m", "pytest", "-n", workers, "--dist", "worksteal"),
        *("-m", "hypothesis", "--hypothesis-profile=search", f"--hypothesis-seed={seed}"),
        *tests,
    ]
    return subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": str(seed)}, check=False).returncode


def _narrowed(tests: list[str]) -> list[str]:
    return [] if tests == ["tests"] else [f"TESTS='{' '.join(tests)}'"]


if __name__ == "__main__":
    sys.exit(main())
