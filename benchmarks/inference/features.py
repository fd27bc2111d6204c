r"""Inference features on trained pipelines: what they save, and how much they change the images.

    python -m benchmarks.inference.features --models outputs/dit outputs/unet

draws class-conditional images of pipelines of `examples/train_mnist.py`, guided, plain and with
each feature of `FEATURES`, from the same noise. Evaluations are counted in multiplications: what
all matrix products and convolutions of a run took over what those of one plain step take. The
change is the root mean square of the difference to the plain run, in images of [-1, 1]. `fewer
steps` is the plain run with as many evaluations as half, a third or a quarter: what a cache has to
beat. Seconds are the processor's, the least of `--repeats` runs. `--autoencoder` decodes with
random weights, whose memory is that of trained ones: the peak of what is allocated meanwhile.
"""

import contextlib
import csv
import io
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser

from benchmarks.header import header
from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

#: A feature by its name: the line that turns it on, and the networks that it is measured on.
FEATURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "first block, 0.05": (
        "pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.05))",
        ("transformer",),
    ),
    "first block, 0.2": (
        "pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))",
        ("transformer",),
    ),
    "MagCache": (
        "pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=steps, "
        "mag_ratios=ratios))",
        ("transformer",),
    ),
    "TaylorSeer, every 2": (
        "pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=2, "
        'cache_identifiers=["proj_out_2"], '
        r'skip_predict_identifiers=[r"transformer_blocks\.\d+"], '
        "taylor_factors_dtype=torch.float32))",
        ("transformer",),
    ),
    "TaylorSeer, every 4": (
        "pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=4, "
        'cache_identifiers=["proj_out_2"], '
        r'skip_predict_identifiers=[r"transformer_blocks\.\d+"], '
        "taylor_factors_dtype=torch.float32))",
        ("transformer",),
    ),
    "TaylorSeer of layers, every 4": (
        "pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=4, "
        r'cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|ff)"], '
        "taylor_factors_dtype=torch.float32))",
        ("transformer",),
    ),
    "TaylorSeer of residual blocks, every 4": (
        r"pipe.unet.enable_cache(TaylorSeerCacheConfig(cache_interval=4, cache_identifiers="
        r'[r".*resnets\.\d+"], taylor_factors_dtype=torch.float32))',
        ("unet",),
    ),
    "attention broadcast": (
        "pipe.network.enable_cache(PyramidAttentionBroadcastConfig("
        "spatial_attention_block_skip_range=2))",
        ("transformer", "unet"),
    ),
    "FasterCache": (
        "pipe.transformer.enable_cache(FasterCacheConfig(is_guidance_distilled=True))",
        ("transformer",),
    ),
    "bfloat16": ("pipe.to(torch.bfloat16)", ("transformer", "unet")),
    "float8 storage": (
        "pipe.network.enable_layerwise_casting(torch.float8_e4m3fn)",
        ("transformer", "unet"),
    ),
    "channels last": (
        "pipe.network.to(memory_format=torch.channels_last)",
        ("transformer", "unet"),
    ),
    "compiled": ("pipe.network.compile()", ("transformer", "unet")),
}
#: What the lines know, besides the pipeline, the number of steps and the ratios of MagCache.
CONFIGS = "FasterCache FirstBlockCache MagCache PyramidAttentionBroadcast TaylorSeerCache".split()
NAMES = {f"{name}Config": getattr(diffusers, f"{name}Config") for name in CONFIGS}
NAMES |= {"torch": torch}
#: Processes: name and diffusion.
PROCESSES = {"ODE": None, "SDE": "memoryless"}
#: Autoencoders: the line that turns a feature on.
DECODING = {
    "plain": "",
    "slices": "pipe.enable_vae_slicing()",
    "tiles": "pipe.enable_vae_tiling()",
}
FIELDS = ("model", "process", "feature", "evaluations", "seconds", "megabytes", "change")
HEAD = """\
Evaluations of the network (pairs, with guidance), seconds of one processor, megabytes (of the
network's weights; for an autoencoder the peak of decoding), and the root mean square of the
change of the images, in [-1, 1].

"""
Row = dict[str, Any]


@dataclass
class FeatureArguments:
    """Command line."""

    models: list[str] = field(metadata={"help": "Pipelines of class-conditional networks."})
    steps: int = 40
    num_samples: int = 20
    guidance_scale: float = 2.0
    features: list[str] = field(default_factory=lambda: list(FEATURES))
    repeats: int = 2
    autoencoder: bool = True
    seed: int = 0
    output_dir: str = "benchmarks/results"


def load(model: str, diffusion: str | None) -> FlowMatchingPipeline:
    """Return a pipeline that samples a process."""
    pipe = FlowMatchingPipeline.from_pretrained(model)
    pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion=diffusion)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: FlowMatchingPipeline, args: FeatureArguments, steps: int) -> Tensor:
    """Return images of [-1, 1] of all classes in turn."""
    labels = [i % pipe.num_classes for i in range(args.num_samples)]
    generator = torch.Generator().manual_seed(args.seed)
    asked = {"num_inference_steps": steps, "guidance_scale": args.guidance_scale}
    return pipe(labels, generator=generator, output_type="latent", **asked).images


def ratios(pipe: FlowMatchingPipeline, args: FeatureArguments) -> list[float]:
    """Return what MagCache needs: ratios of norms from step to step, which it prints."""
    pipe.transformer.enable_cache(
        diffusers.MagCacheConfig(num_inference_steps=args.steps, calibrate=True)
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        draw(pipe, args, args.steps)
    pipe.transformer.disable_cache()
    *_, of_condition = re.findall(r"^\[(\d.*)\]$", printed.getvalue(), flags=re.M)
    return [float(ratio) for ratio in of_condition.split(",")]


def weights(module: torch.nn.Module) -> float:
    """Return the megabytes that weights take."""
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6


def measured(pipe: FlowMatchingPipeline, args: FeatureArguments, steps: int) -> Row:
    """Return images, multiplications and the least seconds of runs."""
    images, seconds = draw(pipe, args, steps), []
    for _ in range(args.repeats):
        start = time.process_time()
        draw(pipe, args, steps)
        seconds.append(time.process_time() - start)
    return {"images": images, "seconds": min(seconds), "megabytes": weights(pipe.network)}


def multiplications(pipe: FlowMatchingPipeline, args: FeatureArguments, steps: int) -> int:
    """Return how many multiplications a run takes."""
    with FlopCounterMode(display=False) as counter:
        draw(pipe, args, steps)
    return counter.get_total_flops()


def sampling(model: str, args: FeatureArguments) -> list[Row]:
    """Return the rows of a trained pipeline."""
    rows, needed = [], None
    for process, diffusion in PROCESSES.items():
        pipe = load(model, diffusion)
        kind = "unet" if pipe.transformer is None else "transformer"
        one = multiplications(pipe, args, args.steps) / args.steps
        plain = measured(pipe, args, args.steps)
        if kind == "transformer" and needed is None:
            needed = ratios(pipe, args)  # of the ODE, for both

        def row(feature: str, found: Row, evaluations: float, plain: Row = plain) -> Row:
            change = (found.pop("images") - plain["images"]).pow(2).mean().sqrt().item()
            named = {"model": Path(model).name, "process": process, "feature": feature}  # noqa: B023
            print(named, found, evaluations, change, flush=True)
            return named | {"evaluations": evaluations, "change": change} | found

        rows.append(row("plain", dict(plain), args.steps))
        for steps in (args.steps // n for n in (2, 3, 4)) if diffusion is None else ():
            rows.append(row(f"fewer steps, {steps}", measured(pipe, args, steps), steps))
        for name in args.features:
            line, kinds = FEATURES[name]
            if kind not in kinds:
                continue
            pipe = load(model, diffusion)
            exec(line, NAMES | {"pipe": pipe, "steps": args.steps, "ratios": needed})
            found = measured(pipe, args, args.steps)
            counted = name != "compiled"  # a graph is not seen by the counter
            work = multiplications(pipe, args, args.steps) if counted else one * args.steps
            rows.append(row(name, found, work / one))
    return rows


def decoding(args: FeatureArguments) -> list[Row]:
    """Return the rows of an autoencoder."""
    torch.manual_seed(args.seed)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=128,
    ).eval()
    unet = diffusers.UNet2DModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    codes, rows, plain = torch.randn(4, 4, 64, 64), [], None
    for name, line in DECODING.items():
        pipe = FlowMatchingPipeline(unet, GaussianFlowScheduler(), vae=vae)
        exec(line, {"pipe": pipe})
        start = time.process_time()
        images = pipe.decode_latents(codes)
        seconds = time.process_time() - start
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            pipe.decode_latents(codes)
        events = record.profiler.kineto_results.events()
        changes = [event.nbytes() for event in events if event.name() == "[memory]"]
        peak = torch.tensor(changes).cumsum(0).max().item() / 1e6
        plain = images if plain is None else plain
        change = (images - plain).pow(2).mean().sqrt().item()
        found = {"seconds": seconds, "megabytes": peak, "change": change}
        rows.append({"model": "autoencoder", "process": "decode", "feature": name} | found)
        for switch in ("slicing", "tiling"):
            getattr(pipe, f"disable_vae_{switch}")()
    return rows


def shown(value: Any) -> str:
    """Return a figure as it stands in the table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@torch.no_grad()
def main(args: FeatureArguments) -> list[Row]:
    """Measure all features and write `inference.csv` and `inference.md`."""
    rows = [row for model in args.models for row in sampling(model, args)]
    rows += decoding(args) if args.autoencoder else []
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    table = [[shown(row.get(name, "")) for name in FIELDS] for row in rows]
    with open(folder / "inference.csv", "w", newline="") as file:
        csv.writer(file).writerows([FIELDS, *table])
    lines = [f"| {' | '.join(cells)} |" for cells in (FIELDS, ["---"] * len(FIELDS), *table)]
    (folder / "inference.md").write_text(
        header("Inference features", args) + HEAD + "\n".join(lines) + "\n"
    )
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(FeatureArguments).parse_args_into_dataclasses()[0])
