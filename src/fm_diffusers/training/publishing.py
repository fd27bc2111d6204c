r"""What a run leaves: a pipeline, a picture, its figures, and a model card made from them.

What is said of a run stands in `training.json`, from which `cards` makes the card. It names what
was read from this machine by the last part of its path, or by its id on the Hub if it has one.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from PIL import Image

import fm_diffusers
from fm_diffusers.files import read_json
from fm_diffusers.pipelines.cards import chosen_scale, example
from fm_diffusers.training.arguments import TrainingArguments
from fm_diffusers.training.cards import write_card
from fm_diffusers.training.finished import saved_whole
from fm_diffusers.training.public import on_hub, public
from fm_diffusers.training.pushing import create_repository, push


def publish(
    args: TrainingArguments,
    pipe: DiffusionPipeline,
    picture: Image.Image,
    figures: dict[str, Any],
    dataset_name: str,
    repo_id: str | None,
    asked: dict[str, Any],
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Save a trained pipeline with its picture, figures and card, and push it to `repo_id`.

    Args:
        args: of the run.
        pipe: the pipeline, with the averaged weights.
        picture: samples.
        figures: of the run, such as steps and seconds.
        dataset_name: what was trained on.
        repo_id: repository on the Hub; None keeps all of it here.
        asked: arguments of a call that the network was trained for, `class_labels`, `prompt` or
            `batch_size`; the card shows some of them.
        beside: writes what else is to be in the folder.
    """
    folder = Path(args.output_dir)
    own = {
        "kind": "pipeline",
        **told(pipe, asked),
        "path": pipe.scheduler.config.path,
        "prediction_type": pipe.scheduler.config.prediction_type,
        "sampler": pipe.scheduler.config.solver,
        **figures,
    }
    with saved_whole(folder, pipe.components.values()) as partial:
        beside(partial)
        pipe.save_pretrained(partial)
        picture.save(partial / "samples.png")
        write_record(partial, args, own, dataset_name, repo_id)
    print(f"saved {folder}: {figures}")
    if repo_id is not None:
        push(folder, repo_id, f"Train for {figures['steps']} steps", args.hub_token)


def told(pipe: DiffusionPipeline, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of what a network is told; of one tuned without, nothing."""
    without = "batch_size" in asked
    return {
        "conditioning": None if without else conditioning(pipe),
        "asked": example(asked, pipe.config.id2label) + chosen_scale(pipe.network),
        "num_classes": 0 if without else pipe.num_classes,
        "id2label": None if without else pipe.config.id2label,
    }


def write_record(
    folder: Path,
    args: TrainingArguments,
    own: dict[str, Any],
    dataset_name: str,
    repo_id: str | None,
) -> None:
    """Write `training.json` and the card.

    Args:
        folder: beside the weights.
        args: of the run.
        own: what is said of what was trained, its `kind` first; see `cards.KINDS`.
        dataset_name: what was trained on.
        repo_id: repository on the Hub, if there is one.
    """
    record = {
        "title": repo_id or public(args.output_dir),
        "repo_id": repo_id,
        "dataset": public(dataset_name),
        "dataset_on_hub": on_hub(dataset_name),
        "license": args.license,
        **own,
        **beginnings(args),
        "hardware": hardware(),
        "version": fm_diffusers.__version__,
        "commit": commit(),
        "command": f"accelerate launch examples/{Path(sys.argv[0]).name} {args.command(public)}",
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    write_card(folder)


def beginnings(args: TrainingArguments) -> dict[str, Any]:
    """Return what a run began with, where it was something: another network, rows of one's own."""
    init_from = public(args.public().get("init_from"))
    said = {"init_from": init_from, "plugins": " ".join(public(args.plugins))}
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
    """Write the name on the Hub into the record and the card."""
    file = folder / "training.json"
    record = read_json(file)
    if "title" in record:
        named = {"title": repo_id, "repo_id": repo_id}
        file.write_text(json.dumps(record | named, indent=2) + "\n")
        write_card(folder)


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
