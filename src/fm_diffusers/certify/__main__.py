"""The command line of `fm_diffusers.certify`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fm_diffusers.certify import Driven, Judge, Row, certify, least_samples, table
from fm_diffusers.certify.arguments import Arguments, Parser
from fm_diffusers.certify.truth import NEARNESS
from fm_diffusers.files import shortened

#: Exit codes by what is said of a scheduler, the first that is said of any of them counts.
CODES = {"cannot be driven": 2, "no": 1, "undecided": 3, "yes": 0}


def main(args: Arguments) -> int:
    """Print the table, write the figures, and return the exit code."""
    judge = Judge(args.num_samples, args.seed)
    rows, faults, said = measure(args, judge)
    print(table(rows, judge), flush=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    if "undecided" in said:
        print(
            f"undecided: {args.num_samples:,} samples cannot tell a tolerance of "
            f"{args.tolerance:g} from chance, take --num_samples {least_samples(args.tolerance)}",
            file=sys.stderr,
        )
    code = next(code for verdict, code in CODES.items() if verdict in said)
    if args.output is not None:
        floor = dict(zip(NEARNESS, judge.floor, strict=True))
        told = {"arguments": asdict(args), "floor": floor, "rows": [asdict(row) for row in rows]}
        code = write(Path(args.output), told | {"faults": faults}) or code
    return code


def measure(args: Arguments, judge: Judge) -> tuple[list[Row], list[str], set[str]]:
    """Return rows, why schedulers cannot be driven, and what is said of them.

    A scheduler is the code of others: whatever it raises, the next one has its turn.
    """
    rows, faults, said = [], [], set()
    for spec in args.schedulers:
        try:
            driven = Driven(spec, *args.objects())
            found = certify(driven, judge, args.steps, args.tolerance, args.seed)
        except (Exception, SystemExit) as error:
            faults.append(f"{spec} cannot be driven: {cause(error)}")
            said.add("cannot be driven")
            continue
        rows += found
        said.add(found[-1].verdict)
    return rows, faults, said


def cause(error: BaseException) -> str:
    """Return an error in one line, with its kind where the message alone may say nothing."""
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return shortened(f"{kind}{error}", 1000)


def write(path: Path, told: dict[str, Any]) -> int:
    """Write figures and return 0, or say why that failed and return 2."""
    try:
        path.write_text(json.dumps(told, indent=1) + "\n")
    except OSError as error:
        print(f"certify: error: {path} could not be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Parser().read()))
