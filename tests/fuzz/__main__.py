"""Fuzz the readers of untrusted input: `python -m tests.fuzz [TARGET…] --minutes 10 --folder findings`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz each target and print its figures; fail if there is a finding."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of untrusted input.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("fuzz-findings"), help="of the reproducers")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"There is no target {min(unknown)!r}; there are {', '.join(TARGETS)}.")
    failed = 0
    for name in arguments.targets or TARGETS:
        tally = fuzz(name, arguments.folder, minutes=arguments.minutes, seed=arguments.seed)
        outcomes = ", ".join(f"{tally.outcomes[kind]:,} {kind}" for kind in ("result", "refused"))
        uncaught = sum(tally.findings.values())
        print(
            f"{name:10} {tally.inputs:9,} inputs: {outcomes}; uncaught {uncaught}; "
            f"slowest {tally.slowest:.1f} s of processor time",
            flush=True,
        )
        for kind, count in tally.findings.most_common():
            print(f"    {count:5} × {kind}", flush=True)
        failed += uncaught
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
