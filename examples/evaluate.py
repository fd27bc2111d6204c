"""Measure a pipeline: quality against evaluations, as an ODE and as an SDE, and its likelihood.

    python examples/evaluate.py --model outputs/mnist --dataset_name ylecun/mnist \
        --test_split test --num_samples 2000

A small classifier of the data set is trained on one half of its images (with `--test_split`, on
those of `--dataset_split`); samples are compared with one half of the others (see
`fm_diffusers.evaluation`), and they are asked for the classes or the captions of the other half,
whose own figures are the floor. Every combination of `--solvers`, `--diffusions` (`none` is the
ODE), `--guidance_scales` and `--num_inference_steps` is a row. Of pipelines in pixels the bits per
dimension of that other half are measured as well (see `fm_diffusers.likelihood`); without
`--test_split` the network may have been trained on it.

Writes `evaluation.json` and `evaluation.png`, and renews the model card beside them if there is
one; `--push_to_hub` pushes the folder.
"""

import json
import time
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from evaluation_images import FEWEST, Real, load_all
from evaluation_report import FIGURES, draw, line, numbers
from huggingface_hub import create_repo
from torch import Tensor

from fm_diffusers import DIFFUSIONS, SOLVERS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.evaluation import Judge, train_classifier
from fm_diffusers.files import read_json
from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.likelihood import bits_per_dimension
from fm_diffusers.training.cards import write_card
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.folders import of_results
from fm_diffusers.training.outputs import check_least
from fm_diffusers.training.plugins import PLUGINS, load_plugins
from fm_diffusers.training.public import public
from fm_diffusers.training.publishing import conditioning, retitle
from fm_diffusers.training.pushing import push


@dataclass
class EvaluationArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline: a folder or a Hub id."})
    dataset_name: str = "ylecun/mnist"
    dataset_config_name: str | None = None
    dataset_split: str = "train"
    test_split: str | None = field(
        default=None, metadata={"help": "Not trained on; by default half of `--dataset_split`."}
    )
    image_column: str = "image"
    label_column: str = "label"
    caption_column: str | None = field(default=None, metadata={"help": "Of pipelines by text."})
    image_mode: str | None = None
    resolution: int | None = None
    max_real_images: int = field(default=40_000, metadata={"help": "Of each split."})
    num_samples: int = 500
    batch_size: int = 250
    solvers: list[str] | None = field(
        default=None,
        metadata={
            "choices": SOLVERS,
            "help": "By default predictor_corrector, of a flow map flow_map.",
        },
    )
    diffusions: list[str] = field(
        default_factory=lambda: ["none", "memoryless"],
        metadata={
            "choices": ChainMap({"none": None}, DIFFUSIONS),
            "help": "Coefficients of the noise, `none` is the ODE.",
        },
    )
    num_inference_steps: list[int] | None = field(
        default=None, metadata={"help": "By default 4 10 20 50, of a flow map 1 2 4."}
    )
    guidance_scales: list[float] | None = field(
        default=None,
        metadata={"help": "By default 1, of a flow map the largest that it has learned."},
    )
    num_likelihood_images: int = field(default=100, metadata={"help": "0 leaves this part out."})
    likelihood_steps: int = field(default=20, metadata={"help": "Of RK4, four evaluations each."})
    seed: int = 0
    output_dir: str | None = field(default=None, metadata={"help": "By default the model folder."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the figures of an earlier evaluation."}
    )
    plugins: list[str] = field(default_factory=list, metadata=PLUGINS)
    push_to_hub: bool = field(default=False, metadata={"help": "The folder with its new card."})
    hub_model_id: str | None = None
    hub_private_repo: bool = field(default=False, metadata={"help": "Of a new repository."})
    hub_token: str | None = None

    def __post_init__(self) -> None:
        load_plugins(self.plugins)
        check_least(self, FEWEST, "num_samples", "max_real_images")
        check_least(self, 1, "batch_size", "num_inference_steps", "likelihood_steps", "resolution")
        if self.num_likelihood_images not in (0, *range(2, self.max_real_images)):
            raise ValueError(
                "--num_likelihood_images must be 0, or at least 2 and less than "
                f"--max_real_images, got {self.num_likelihood_images}"
            )


def completed(args: EvaluationArguments, pipe: FlowMatchingPipeline) -> EvaluationArguments:
    """Return the arguments with the solver, the numbers of steps and the guidance that fit.

    Raises:
        ValueError: for another guidance than the one that the network has learned.
    """
    is_map = pipe.scheduler.config.get("solver") == "flow_map"
    solver, steps = ("flow_map", [1, 2, 4]) if is_map else ("predictor_corrector", [4, 10, 20, 50])
    learned = distilled_guidance(pipe.network)
    scales = [learned[1] if isinstance(learned, list | tuple) else learned or 1.0]
    if isinstance(learned, float) and args.guidance_scales not in (None, scales):
        raise ValueError(
            f"--guidance_scales {args.guidance_scales}: {args.model} has learned {learned} and "
            "draws with no other: leave the flag out"
        )
    return replace(
        args,
        solvers=args.solvers or [solver],
        num_inference_steps=args.num_inference_steps or steps,
        guidance_scales=args.guidance_scales or scales,
    )


def schedulers(
    pipe: FlowMatchingPipeline, args: EvaluationArguments
) -> list[GaussianFlowScheduler]:
    """Return the scheduler of the pipeline with every solver and coefficient.

    Parameters that were saved for the solver and the coefficient of the pipeline stay theirs.
    """
    config, made = pipe.scheduler.config, []
    for solver, diffusion in product(args.solvers, args.diffusions):
        names = {"solver": solver, "diffusion": None if diffusion == "none" else diffusion}
        foreign = {f"{kind}_kwargs": None for kind in names if names[kind] != config.get(kind)}
        made.append(GaussianFlowScheduler.from_config(config, **names, **foreign))
    return made


def sample(pipe: FlowMatchingPipeline, parts: list[Real], **options: Any) -> Tensor:
    """Return images in [-1, 1], as many as real ones and asked for what these show."""
    asked = [part.conditions(pipe) or {"batch_size": len(part.images)} for part in parts]
    return 2 * torch.cat([pipe(**a, **options, output_type="pt").images for a in asked]) - 1


def measure(
    pipe: FlowMatchingPipeline,
    processes: list[GaussianFlowScheduler],
    judge: Judge,
    real: Real,
    args: EvaluationArguments,
) -> Iterator[dict[str, Any]]:
    """Yield a row for every combination, with the same noise, asked for what `real` shows."""
    asked = real[torch.arange(args.num_samples) % len(real.images)]
    labels = asked.labels.to(pipe.device) if conditioning(pipe) else None
    parts = [asked[part] for part in torch.arange(args.num_samples).split(args.batch_size)]
    for scheduler, scale in product(processes, args.guidance_scales):
        pipe.scheduler = scheduler
        for steps in args.num_inference_steps:
            options = {"num_inference_steps": steps, "guidance_scale": scale}
            generator, start = torch.Generator().manual_seed(args.seed), time.perf_counter()
            images = sample(pipe, parts, generator=generator, **options)
            seconds = time.perf_counter() - start
            yield {
                "solver": scheduler.config.solver,
                "diffusion": scheduler.config.diffusion,
                "evaluations": len(scheduler.timesteps),
                **options,
                **judge(images, labels),
                "seconds": seconds,
            }


def likelihood(
    pipe: FlowMatchingPipeline, real: Real, args: EvaluationArguments
) -> dict[str, float | int | str]:
    """Return the bits per dimension of real images, with one random vector for each."""
    generator, found = torch.Generator().manual_seed(args.seed), []
    count = min(args.num_likelihood_images, len(real.images))
    for part in torch.arange(count).split(args.batch_size):
        batch = real[part]
        density = pipe.log_likelihood(
            batch.images,
            num_probes=1,
            num_inference_steps=args.likelihood_steps,
            generator=generator,
            **batch.conditions(pipe),
        )
        found.append(density.log_likelihood)
    bits = bits_per_dimension(torch.cat(found), real.images[0].numel())
    steps = args.likelihood_steps
    sampler = f"the ODE, RK4 on {steps} steps ({4 * steps} evaluations), one probe an image"
    return bits._asdict() | {"num_images": count, "sampler": sampler}


def results(args: EvaluationArguments) -> Path:
    """Return the folder of the results; raise a `ValueError` if the end could not be reached."""
    folder, trained = of_results(args.model, args.output_dir), Path(args.model, "training.json")
    if args.push_to_hub and not (folder / "training.json").is_file():
        raise ValueError(
            f"--push_to_hub pushes a trained pipeline with its card, but {folder} has no "
            "training.json: push from the folder of the training"
        )
    if (folder / "evaluation.json").exists() and not args.overwrite_output_dir:
        raise ValueError(
            f"{folder} has an evaluation.json: --overwrite_output_dir replaces it, or choose "
            "another --output_dir"
        )
    record = read_json(trained) if trained.is_file() else {}
    coupling = record.get("coupling", "independent")
    if coupling != "independent" and set(args.diffusions) != {"none"}:
        raise ValueError(
            f"noise and data of the training were coupled ({coupling}), which leaves no score to "
            f"sample an SDE with: pass --diffusions none, got {args.diffusions}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(args: EvaluationArguments, folder: Path) -> None:
    """Renew the model card and push the folder, under the name that it has on the Hub."""
    if args.push_to_hub:
        name = args.hub_model_id or folder.resolve().name
        repo_id = create_repo(
            name, private=args.hub_private_repo or None, token=args.hub_token, exist_ok=True
        ).repo_id
        retitle(folder, repo_id)
    write_card(folder)
    if args.push_to_hub:
        push(folder, repo_id, "Evaluate", args.hub_token)


def main(args: EvaluationArguments) -> dict[str, Any]:
    """Print the table, write it with its picture and return it."""
    folder = results(args)
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    args = completed(args, pipe)
    known, compared, further = load_all(args, pipe)
    further.conditions(pipe)  # what is missing is told before the classifier is trained
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    processes, trained = schedulers(pipe, args), pipe.scheduler
    device, few = pipe.device, torch.arange(min(args.num_samples, len(further.images)))
    print(f"training a classifier on {len(known.images)} images ...", flush=True)
    classifier = train_classifier(known.scaled.to(device), known.labels.to(device))
    judge, floor = Judge(classifier, compared.scaled.to(device)), further[few]
    real = judge(floor.scaled.to(device), floor.labels.to(device))
    print(" " * 57 + "".join(f"{title:>11s}" for title, _ in FIGURES.values()))
    print(f"{f'{len(few)} real images':57s}" + numbers(real))
    figures = {
        "dataset": public(args.dataset_name),
        "num_samples": args.num_samples,
        "real": real | {"num_images": len(few)},
        "rows": [],
        "bits_per_dimension": None,
        "arguments": public({k: v for k, v in vars(args).items() if k != "hub_token"}),
    }
    for row in measure(pipe, processes, judge, further, args):
        print(line(row), flush=True)
        figures["rows"].append(row)
    pipe.scheduler = trained
    if args.num_likelihood_images and pipe.vae is None:
        figures["bits_per_dimension"] = bits = likelihood(pipe, further, args)
        print("bits per dimension {value:.3f} +- {standard_error:.3f}".format(**bits))
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    draw(figures, folder / "evaluation.png")
    if (folder / "training.json").exists():
        publish(args, folder)
    return figures


if __name__ == "__main__":
    with plain_errors():
        main(parse(EvaluationArguments))
