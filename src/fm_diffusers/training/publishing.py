r"""What a run leaves: a pipeline, a picture, its figures, and a model card made from them.

What a card says stands in two files beside the weights: `training.json`, written here, and
`evaluation.json`, which `examples/evaluate.py` adds. `write_card` reads both, so that the card of
an evaluated model has the numbers that were measured and no others.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard, ModelCardData, create_repo, upload_folder
from PIL import Image

import fm_diffusers
from fm_diffusers.training.arguments import TrainingArguments
from fm_diffusers.training.plugins import plugin_lines

#: What stays on the machine of the training.
PRIVATE = ["checkpoint-*", "partial-*", "logs/*", "samples-*", "cache/*", ".cache/*"]

CARD = """# {title}

{kind} images by flow matching, trained with `fm_diffusers` on {dataset}.
{processes}:

![samples](samples.png)

```python
from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
{plugins}
pipe = FlowMatchingPipeline.from_pretrained("{title}")
ode = pipe({asked}num_inference_steps=20).images
{sde}```
{evaluation}
## Training

| | |
|---|---|
{table}

```
{command}
```
"""
SDE = """pipe.scheduler = GaussianFlowScheduler.from_config(
    pipe.scheduler.config, diffusion="memoryless"
)
sde = pipe({asked}num_inference_steps=50).images
"""
EVALUATION = """
## Evaluation

{num_samples:,} samples; distances are between features of a classifier of the data set, {floor}.

{table}

![quality against evaluations](evaluation.png)
"""
#: What a pipeline is asked with: in words, the Hub's task, and an example.
ASKED = {
    "prompt": ("Prompted", "text-to-image", 'prompt="...", '),
    "class": ("Class-conditional", "unconditional-image-generation", "class_labels=[3, 7], "),
    None: ("Unconditional", "unconditional-image-generation", ""),
}
#: Columns of `evaluation.json` and their names in the card.
FIGURES = {
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "classifier accuracy",
    "sliced_wasserstein": "sliced Wasserstein",
}


def create_repository(args: TrainingArguments, accelerator: Accelerator) -> str | None:
    """Create the repository to push to, before the training, so that it cannot fail at the end."""
    if not args.push_to_hub or not accelerator.is_main_process:
        return None
    return create_repo(
        args.hub_model_id or Path(args.output_dir).resolve().name,
        private=args.hub_private_repo,
        token=args.hub_token,
        exist_ok=True,
    ).repo_id


def publish(
    args: TrainingArguments,
    pipe: DiffusionPipeline,
    picture: Image.Image,
    figures: dict[str, Any],
    dataset_name: str,
    repo_id: str | None = None,
) -> None:
    """Save a trained pipeline with its picture, figures and card, and push it to `repo_id`.

    Args:
        args: of the run.
        pipe: the pipeline, with the averaged weights.
        picture: samples.
        figures: of the run, such as steps and seconds.
        dataset_name: what was trained on.
        repo_id: repository on the Hub; None keeps all of it here.
    """
    folder = Path(args.output_dir)
    pipe.save_pretrained(folder)
    picture.save(folder / "samples.png")
    for old in ("evaluation.json", "evaluation.png"):  # of other weights
        (folder / old).unlink(missing_ok=True)
    local = Path(dataset_name).exists()
    record = {
        "title": repo_id or args.output_dir,
        "dataset": Path(dataset_name).name if local else dataset_name,
        "dataset_on_hub": not local and "/" in dataset_name,
        "license": args.license,
        "conditioning": conditioning(pipe),
        "path": pipe.scheduler.config.path,
        "prediction_type": pipe.scheduler.config.prediction_type,
        **figures,
        **beginnings(args),
        "hardware": hardware(),
        "version": fm_diffusers.__version__,
        "commit": commit(),
        "command": f"accelerate launch examples/{Path(sys.argv[0]).name} {args.command()}",
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    write_card(folder)
    print(f"saved {folder}: {figures}")
    if repo_id is not None:
        push(folder, repo_id, f"Train for {figures['steps']} steps", args.hub_token)


def beginnings(args: TrainingArguments) -> dict[str, Any]:
    """Return what a run began with, where it was something: another network, rows of one's own."""
    said = {"init_from": args.public().get("init_from"), "plugins": " ".join(args.plugins)}
    return {name: value for name, value in said.items() if value}


def say_finished(args: TrainingArguments, accelerator: Accelerator, steps: int) -> None:
    """Say that nothing is left of a run of `steps` steps; push what it left if that was asked."""
    folder = Path(args.output_dir)
    accelerator.print(
        f"{folder} holds the outcome of all {steps} steps: nothing is left to do. Ask for more "
        "with --max_train_steps or --num_train_epochs"
    )
    repo_id = create_repository(args, accelerator)
    if repo_id is not None:
        retitle(folder, repo_id)
        push(folder, repo_id, f"Train for {steps} steps", args.hub_token)


def retitle(folder: Path, repo_id: str) -> None:
    """Write the name on the Hub into the record and the card of a pipeline."""
    file = folder / "training.json"
    record = json.loads(file.read_text())
    if "title" in record:
        file.write_text(json.dumps(record | {"title": repo_id}, indent=2) + "\n")
        write_card(folder)


def push(folder: Path, repo_id: str, message: str, token: str | None = None) -> None:
    """Upload a saved pipeline with its card, without checkpoints and logs."""
    url = upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        ignore_patterns=PRIVATE,
        commit_message=message,
        token=token,
    )
    print(f"pushed to {url}")


def write_card(folder: Path) -> None:
    """Write `README.md` from `training.json` and, where there is one, `evaluation.json`."""
    record = json.loads((folder / "training.json").read_text())
    evaluation = folder / "evaluation.json"
    measured = json.loads(evaluation.read_text()) if evaluation.exists() else None
    kind, task, asked = ASKED[record["conditioning"]]
    stochastic = record["coupling"] == "independent"
    data = ModelCardData(
        library_name="diffusers",
        license=record["license"],
        pipeline_tag=task,
        tags=["flow-matching", "fm_diffusers", record["path"]],
        datasets=[record["dataset"]] if record["dataset_on_hub"] else None,
        model_name=record["title"],
        eval_results=results(record, measured) if measured else None,
    )
    hidden = ("title", "dataset", "dataset_on_hub", "conditioning", "command")
    rows = {name: value for name, value in record.items() if name not in hidden}
    text = CARD.format(
        title=record["title"],
        kind=kind,
        dataset=f"`{record['dataset']}`",
        asked=asked,
        plugins=plugin_lines(record),
        processes="One network, sampled as an ODE (upper half) and as an SDE (lower half)"
        if stochastic
        else "Noise and data were coupled in the training, so it is sampled as an ODE",
        sde=SDE.format(asked=asked) if stochastic else "",
        evaluation=evaluation_section(measured) if measured else "",
        table="\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items()),
        command=record["command"],
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(folder / "README.md")


def evaluation_section(measured: dict[str, Any]) -> str:
    """Return the table of what `examples/evaluate.py` measured."""
    columns = [name for name in FIGURES if measured["rows"][0].get(name) is not None]
    lines = [
        "| solver | process | evaluations | " + " | ".join(FIGURES[c] for c in columns) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for row in measured["rows"]:
        process = "ODE" if row["diffusion"] is None else f"SDE ({row['diffusion']})"
        values = " | ".join(f"{row[c]:.3g}" for c in columns)
        lines.append(f"| {row['solver']} | {process} | {row['evaluations']} | {values} |")
    floor = ", ".join(
        f"{FIGURES[name]} {value:.3g}"
        for name, value in measured["real"].items()
        if name in FIGURES and value is not None
    )
    return EVALUATION.format(
        num_samples=measured["num_samples"],
        floor=f"of real images {floor}",
        table="\n".join(lines),
    )


def results(record: dict[str, Any], measured: dict[str, Any]) -> list[EvalResult]:
    """Return the figures of the best row for the metadata of the card."""
    best = min(measured["rows"], key=lambda row: row["frechet_distance"])
    return [
        EvalResult(
            task_type="image-generation",
            dataset_type=record["dataset"],
            dataset_name=record["dataset"],
            metric_type=name,
            metric_name=f"{title}, {best['evaluations']} evaluations",
            metric_value=round(best[name], 4),
        )
        for name, title in FIGURES.items()
        if best.get(name) is not None
    ]


def conditioning(pipe: DiffusionPipeline) -> str | None:
    """Return what a pipeline is asked with: `prompt`, `class` or nothing."""
    if getattr(pipe, "text_encoder", None) is not None:
        return "prompt"
    return "class" if pipe.num_classes else None


def hardware() -> str:
    """Return the device of the training in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads a process"


def commit() -> str | None:
    """Return the commit of the running script, None outside of a repository."""
    folder = Path(sys.argv[0]).resolve().parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
