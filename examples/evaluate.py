"""Measure a class-conditional pipeline: does a classifier of real images recognise its samples?

    python examples/evaluate.py --model outputs/mnist --num_samples 1000

trains a support vector machine on real images of the data set, checks it on others, and reports
the share of samples that it takes for the class that was asked for, for the ODE and for the SDE of
the same network. The figures are printed as a table and written to `evaluation.json`.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC
from train_mnist import Arguments, load_images, processes
from transformers import HfArgumentParser

from fm_diffusers import FlowMatchingPipeline


@dataclass
class EvaluationArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline: a folder or a Hub id."})
    dataset_name: str = "ylecun/mnist"
    num_samples: int = 500
    batch_size: int = 250
    guidance_scale: float = 1.0
    ode_steps: int = 20
    sde_steps: int = 50
    diffusion: str = field(default="memoryless", metadata={"help": "Coefficient of the SDE."})
    seed: int = 0
    max_real_images: int = field(default=12_000, metadata={"help": "For the classifier."})
    output_dir: str | None = field(default=None, metadata={"help": "By default the model folder."})


def train_classifier(args: EvaluationArguments) -> tuple[SVC, float]:
    """Return a classifier of real images and its accuracy on real images held out."""
    images, labels = load_images(Arguments(dataset_name=args.dataset_name))
    order = np.random.default_rng(args.seed).permutation(len(images))[: args.max_real_images]
    images, labels = images.flatten(1).numpy()[order] / 255, labels.numpy()[order]
    held_out = len(images) // 6
    classifier = SVC(C=10).fit(images[held_out:], labels[held_out:])
    return classifier, classifier.score(images[:held_out], labels[:held_out])


def sample(pipe: FlowMatchingPipeline, args: EvaluationArguments, steps: int) -> tuple:
    """Return samples in equal numbers from every class, shape `(n, pixels)`, and the classes."""
    labels = [i % pipe.num_classes for i in range(args.num_samples)]
    generator = torch.Generator().manual_seed(args.seed)
    images = [
        pipe(
            class_labels=labels[i : i + args.batch_size],
            num_inference_steps=steps,
            guidance_scale=args.guidance_scale,
            generator=generator,
            output_type="pt",
        ).images
        for i in range(0, args.num_samples, args.batch_size)
    ]
    return torch.cat(images).flatten(1).cpu().numpy(), np.array(labels)


def main(args: EvaluationArguments) -> dict[str, float]:
    """Print the table, write it to `evaluation.json` and return it."""
    classifier, real = train_classifier(args)
    figures = {"real images": real}
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    for name, steps in processes(pipe, args.ode_steps, args.sde_steps, args.diffusion):
        start = time.perf_counter()
        images, labels = sample(pipe, args, steps)
        seconds = time.perf_counter() - start
        figures[name] = float((classifier.predict(images) == labels).mean())
        print(f"{name}: {args.num_samples} samples in {seconds:.1f} s")
    print(f"\nclassifier accuracy (guidance {args.guidance_scale:g})")
    for name, accuracy in figures.items():
        print(f"  {name:32s} {accuracy:7.1%}")
    Path(args.output_dir or args.model, "evaluation.json").write_text(
        json.dumps(figures | {"arguments": vars(args)}, indent=2) + "\n"
    )
    return figures


if __name__ == "__main__":
    main(HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses()[0])
