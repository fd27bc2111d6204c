"""Draw digits from one trained network, as an ODE and as an SDE.

    python examples/sample_mnist.py --model outputs/mnist

loads the pipeline with `from_pretrained`, a folder or a Hub id, and writes two pictures beside it:
`ode_and_sde.png`, samples of every class from both processes, and `trajectories.png`, the same
noise on its way to a digit along the ODE and along the SDE, with the share of the steps above.
"""

from dataclasses import dataclass, field

from PIL import Image

from fm_diffusers import DIFFUSIONS, FlowMatchingPipeline
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.folders import of_results
from fm_diffusers.training.outputs import check_least
from fm_diffusers.training.pictures import (
    GUIDANCE,
    column_names,
    processes,
    sample_grid,
    states,
)
from fm_diffusers.training.plugins import PLUGINS, load_plugins
from fm_diffusers.training.sheets import contact_sheet


@dataclass
class SamplingArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline: a folder or a Hub id."})
    output_dir: str | None = field(default=None, metadata={"help": "By default the model folder."})
    ode_steps: int | None = field(
        default=None, metadata={"help": "By default 20, of a flow map 1."}
    )
    sde_steps: int | None = field(
        default=None, metadata={"help": "By default 50, of a flow map 4."}
    )
    diffusion: str = field(
        default="memoryless", metadata={"choices": DIFFUSIONS, "help": "Coefficient of the SDE."}
    )
    guidance_scale: float | None = field(default=None, metadata=GUIDANCE)
    seed: int = 0
    plugins: list[str] = field(default_factory=list, metadata=PLUGINS)

    def __post_init__(self) -> None:
        load_plugins(self.plugins)
        check_least(self, 1, "ode_steps", "sde_steps")


def trajectories(pipe: FlowMatchingPipeline, args: SamplingArguments) -> Image.Image:
    """Return the way of the same noise to four digits, along each process."""
    labels, parts = [pipe.num_classes * i // 4 for i in range(4)], {}
    names = column_names({"class_labels": labels}, pipe.config.id2label)
    shares, configured = [i / 10 for i in range(11)], pipe.scheduler
    for title, steps in processes(pipe, args.ode_steps, args.sde_steps, args.diffusion):
        seen = states(pipe, labels, steps, args.guidance_scale, args.seed)
        shown = [seen[round(share * steps)] for share in shares]
        for row, name in enumerate(names):
            parts[f"{title}, class {name}"] = [images[row] for images in shown]
    pipe.scheduler = configured
    return contact_sheet(parts, [f"{share:.0%}" for share in shares])


def main(args: SamplingArguments) -> None:
    """Write both pictures and say where they are."""
    folder = of_results(args.model, args.output_dir)
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    if pipe.scheduler.path.coupled:
        print(f"{args.model} was trained with coupled noise, so the pictures show the ODE alone")
    names = ("ode_steps", "sde_steps", "diffusion", "guidance_scale", "seed")
    options = {name: getattr(args, name) for name in names}
    asked = {"class_labels": list(range(pipe.num_classes))}
    for name, draw in (
        ("trajectories.png", lambda: trajectories(pipe, args)),
        ("ode_and_sde.png", lambda: sample_grid(pipe, asked, rows=6, **options)),
    ):
        print(f"drawing {name} ...", flush=True)
        draw().save(folder / name)
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    with plain_errors():
        main(parse(SamplingArguments))
