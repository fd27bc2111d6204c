"""The certificate of `fm_diffusers.certify`, for our scheduler and fifteen of diffusers'.

    python -m benchmarks.samplers.certificate

writes `certificate.md`, the table of docs/certificate.md, and `certificate.csv`. Clipping is
switched off where it is on by default, since these data are not images; all else are defaults.
"""

import csv
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from benchmarks.header import header
from fm_diffusers.certify import Driven, Judge, Row, certify, table

#: What diffusers' multistep schedulers need on a flow; the table says `flow` for it.
FLOW = '"use_flow_sigmas": true, "prediction_type": "flow_prediction"'
INDEX = '{"path": "discrete", "prediction_type": "epsilon", "time_convention": "index"}'
UNCLIPPED = '{"clip_sample": false}'
SCHEDULERS = (
    "GaussianFlowScheduler",
    'GaussianFlowScheduler{"diffusion": "memoryless"}',
    'GaussianFlowScheduler{"diffusion": "constant"}',
    f"GaussianFlowScheduler{INDEX}",
    "FlowMatchEulerDiscreteScheduler",
    'FlowMatchEulerDiscreteScheduler{"stochastic_sampling": true}',
    "FlowMatchHeunDiscreteScheduler",
    f"UniPCMultistepScheduler{{{FLOW}}}",
    f"DPMSolverMultistepScheduler{{{FLOW}}}",
    f'DPMSolverMultistepScheduler{{{FLOW}, "algorithm_type": "sde-dpmsolver++"}}',
    f"DDIMScheduler{UNCLIPPED}",
    f"DDPMScheduler{UNCLIPPED}",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "PNDMScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
)


@dataclass
class Arguments:
    """Command line."""

    schedulers: list[str] = field(default_factory=lambda: list(SCHEDULERS))
    steps: list[int] = field(default_factory=lambda: [16, 64])
    num_samples: int = 20_000
    seed: int = 0
    output_dir: str = "benchmarks/results"


def main(args: Arguments) -> list[Row]:
    """Measure, and write the table and the figures."""
    torch.set_num_threads(1)
    folder, judge, rows = Path(args.output_dir), Judge(args.num_samples, args.seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for spec in args.schedulers:
        rows += certify(Driven(spec, {}, {}), judge, args.steps, seed=args.seed)
        print(spec, "passes" if rows[-1].passed else "does not pass", flush=True)
    with (folder / "certificate.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    text = header("A certificate for schedulers", args) + table(rows, judge).replace(FLOW, "flow")
    (folder / "certificate.md").write_text(text + "\n")
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
