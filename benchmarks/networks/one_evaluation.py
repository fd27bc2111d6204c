r"""One evaluation: flow maps beside their teacher, its calibration and its straightened flow.

    python -m benchmarks.networks.one_evaluation --teacher outputs/mnist \
        --maps outputs/map-1 outputs/map-2 --straight outputs/mnist-straight

compares pipelines of `examples/train_few_steps.py`, `reflow.py` and `train_mnist.py` with the
teacher's converged samples of the same noise: the Fréchet distance to real images, in the features
of a classifier of them (`metrics`), and the median distance to the converged sample. Each map is
compared at the guidance scale that it has learned, one without at 1. Evaluations are steps: a
guided step of the teacher asks its network twice, one of a map once.

The figures are means over `--seeds`, each with noise of its own, and go to `NAME.csv` and
`NAME.md`; `--picture` draws 1, 2 and 4 steps of the teacher, and of the last map below.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.header import header
from benchmarks.networks.metrics import Judge, distance
from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.calibration import calibrate
from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.training.pictures import column_names
from fm_diffusers.training.sheets import contact_sheet

FIELDS = ("guidance", "method", "evaluations", "seed", "frechet", "median")


@dataclass
class Arguments:
    """Command line."""

    teacher: str
    maps: list[str] = field(default_factory=list)
    straight: str | None = field(default=None, metadata={"help": "Of reflow; without guidance."})
    dataset_name: str = "ylecun/mnist"
    evaluations: list[int] = field(default_factory=lambda: [1, 2, 4])
    converged_steps: int = 48
    calibration_samples: int = field(default=128, metadata={"help": "0 leaves it out."})
    num_samples: int = 1000
    batch_size: int = 250
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    name: str = "one_evaluation"
    picture: bool = False
    output_dir: str = "outputs/benchmarks"


def load(folder: str) -> FlowMatchingPipeline:
    """Return a saved pipeline without a progress bar."""
    pipe = FlowMatchingPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(
    pipe: FlowMatchingPipeline, args: Arguments, noise: Tensor, steps: int, w: float
) -> Tensor:
    """Return samples of noise, of all classes in turn, in [-1, 1]."""
    labels = torch.arange(len(noise)) % pipe.num_classes
    parts = zip(noise.split(args.batch_size), labels.split(args.batch_size), strict=True)
    options = {"num_inference_steps": steps, "guidance_scale": w, "output_type": "latent"}
    ends = [
        pipe(label.tolist(), latents=part * pipe.init_noise_sigma, **options).images
        for part, label in parts
    ]
    return torch.cat(ends).clamp(-1, 1)


def methods(
    args: Arguments, guidance: float
) -> Iterator[tuple[str, FlowMatchingPipeline, Callable[[int], bool]]]:
    """Yield name, pipeline and which numbers of evaluations are measured, of all that compares."""
    yield "teacher", load(args.teacher), lambda n: True
    if args.calibration_samples and (steps := [n for n in args.evaluations if n > 1]):
        pipe = load(args.teacher)
        told = {"generator": torch.Generator().manual_seed(10_000), "guidance_scale": guidance}
        fitted = {"num_samples": args.calibration_samples, "progress": False}
        pipe.scheduler = calibrate(pipe.scheduler, pipe, steps, **told, **fitted)
        yield "calibrated", pipe, lambda n: n > 1
    if args.straight is not None and guidance == 1:
        pipe = load(args.straight)
        pipe.scheduler = GaussianFlowScheduler.from_config(
            pipe.scheduler.config, solver="euler", grid="uniform"
        )
        yield "reflow, Euler", pipe, lambda n: True
    for folder in args.maps:
        pipe = load(folder)
        if learned_guidance(pipe) == guidance:
            yield f"map: {Path(folder).name}", pipe, lambda n: True


def learned_guidance(pipe: FlowMatchingPipeline) -> float:
    """Return the guidance scale that a map draws with."""
    return distilled_guidance(pipe.network) or 1.0


@torch.no_grad()
def measure(args: Arguments, judge: Judge, guidance: float) -> Iterator[dict[str, float | str]]:
    """Yield rows of the table, of one guidance scale."""
    teacher = load(args.teacher)
    shape = teacher.sample_shape(None, None)
    with torch.enable_grad():
        compared = list(methods(args, guidance))
    for seed in args.seeds:
        noise = torch.randn(
            args.num_samples, *shape, generator=torch.Generator().manual_seed(seed)
        )
        labels = torch.arange(len(noise)) % teacher.num_classes
        truth = drawn(teacher, args, noise, args.converged_steps, guidance)
        key = {"guidance": guidance, "seed": seed}
        first = {"method": "converged", "evaluations": args.converged_steps, "median": 0.0}
        yield key | first | {"frechet": judge(truth, labels)[0]}
        for name, pipe, offered in compared:
            for steps in filter(offered, args.evaluations):
                ends = drawn(pipe, args, noise, steps, guidance)
                figures = {"frechet": judge(ends, labels)[0], "median": distance(ends, truth)[1]}
                yield key | {"method": name, "evaluations": steps} | figures


def table(rows: list[dict], evaluations: list[int], floor: str) -> str:
    """Return the table of one guidance scale; `floor` says how far real images are."""
    lines = ["| method | " + " | ".join(f"{n}" for n in evaluations) + " |"]
    lines += ["|---" * (1 + len(evaluations)) + "|"]
    whole = mean(row["frechet"] for row in rows if row["method"] == "converged")
    for name in dict.fromkeys(row["method"] for row in rows if row["method"] != "converged"):
        cells = []
        for n in evaluations:
            own = [r for r in rows if (r["method"], r["evaluations"]) == (name, n)]
            if not own:
                cells.append("")
                continue
            values = [row["frechet"] for row in own]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            far = mean(row["median"] for row in own)
            cells.append(f"{mean(values):.3f}{spread} ({mean(values) / whole:.2f} x), {far:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    guidance, steps = rows[0]["guidance"], next(r["evaluations"] for r in rows)
    return (
        f"## Guidance {guidance:g}\n\nThe teacher's converged samples ({steps} steps) have a "
        f"Fréchet distance of {whole:.3f} to images of the training, {floor}. Each cell is the "
        "Fréchet distance, its ratio to the converged one, and the median distance to the "
        "converged sample of the same noise (root mean square of pixels from -1 to 1), by the "
        "number of steps.\n\n" + "\n".join(lines) + "\n"
    )


def draw_picture(args: Arguments, folder: Path) -> None:
    """Save rows of 1, 2 and 4 steps: of the teacher, and below them of the last map."""
    student = load(args.maps[-1])
    guidance = learned_guidance(student)
    parts, labels = {}, [*range(student.num_classes)][:10]
    for name, pipe in (("teacher", load(args.teacher)), ("flow map", student)):
        for steps in (1, 2, 4):
            generator = torch.Generator().manual_seed(0)
            options = {"num_inference_steps": steps, "guidance_scale": guidance}
            images = pipe(labels, generator=generator, **options).images
            parts[f"{name}, {steps} step{'s' * (steps > 1)}"] = images
    names = column_names({"class_labels": labels}, student.config.id2label)
    contact_sheet(parts, names).save(folder / f"{args.name}.png")


def main(args: Arguments) -> None:
    """Measure, and write the table and the picture."""
    folder = Path(args.output_dir)
    judge = Judge(args.dataset_name, folder / "cache" / f"{Path(args.dataset_name).name}.pt")
    plain = {1.0} if args.straight is not None or not args.maps else set()
    scales = sorted(plain | {learned_guidance(load(one)) for one in args.maps})
    count = min(args.num_samples, len(judge.further[0]))
    floor = f"{count} further ones one of {judge.floor(count):.3f}"
    rows, parts = [], []
    for guidance in scales:
        own = []
        for row in measure(args, judge, guidance):
            print(row, flush=True)
            own.append(row)
        rows += own
        parts.append(table(own, args.evaluations, floor))
        with (folder / f"{args.name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        text = header("One evaluation", args) + "\n".join(parts)
        (folder / f"{args.name}.md").write_text(text)
    if args.picture:
        draw_picture(args, folder)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
