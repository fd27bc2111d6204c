"""The command line of `fm_diffusers.certify`."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from fm_diffusers.certify import Driven, Judge, certify, table
from fm_diffusers.certify.truth import NEARNESS

#: What a scheduler raises that does not fit.
FAULTS = (ValueError, TypeError, AttributeError, NotImplementedError)


@dataclass
class Arguments:
    """Command line."""

    schedulers: list[str] = field(
        default_factory=lambda: ["GaussianFlowScheduler"],
        metadata={"help": "Names or module:Class, each with a JSON configuration after it."},
    )
    network: str = field(
        default="{}", metadata={"help": "JSON: path, prediction_type and what else is not told."}
    )
    step_kwargs: str = field(default="{}", metadata={"help": 'JSON for step, as {"eta": 1}.'})
    steps: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])
    num_samples: int = field(default=20_000, metadata={"help": "Of each distribution."})
    tolerance: float = field(default=0.02, metadata={"help": "Of widths and means, relative."})
    seed: int = 0
    output: str | None = field(default=None, metadata={"help": "A JSON file for all figures."})


def main(args: Arguments) -> int:
    """Print the table, write the figures, and return the exit code."""
    judge, rows, code = Judge(args.num_samples, args.seed), [], 0
    network, step_kwargs = json.loads(args.network), json.loads(args.step_kwargs)
    for spec in args.schedulers:
        try:
            driven = Driven(spec, network, step_kwargs)
            found = certify(driven, judge, args.steps, args.tolerance, args.seed)
        except FAULTS as error:
            print(f"{spec} cannot be driven: {error}", file=sys.stderr)
            code = 2
            continue
        rows += found
        code = max(code, 0 if found[-1].passed else 1)
    print(table(rows, judge))
    if args.output is not None:
        floor = dict(zip(NEARNESS, judge.floor, strict=True))
        told = {"arguments": asdict(args), "floor": floor, "rows": [asdict(row) for row in rows]}
        Path(args.output).write_text(json.dumps(told, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]))
