"""Draw noise on its way to digits, as a picture that moves: the ODE, the SDE, and one evaluation.

    python examples/animate.py --model pretrained/mnist-mean-flow

loads a pipeline, a folder or a Hub id, draws each class from one noise in all rows, and writes
`flow.gif`: a row of the ODE, a row of the SDE, and, if the network is a flow map, a row of one
evaluation. `--flow_map` takes that row from another pipeline, such as the flow map of the first
that `train_few_steps.py` has trained.
"""

from dataclasses import dataclass, field
from pathlib import Path

from diffusers.utils import export_to_gif
from PIL import Image

from fm_diffusers import DIFFUSIONS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.outputs import MOVING, check_file, check_least
from fm_diffusers.training.pictures import GUIDANCE, column_names, processes, states
from fm_diffusers.training.sheets import contact_sheet


@dataclass
class AnimationArguments:
    """Command line."""

    model: str = field(
        default="pretrained/mnist-mean-flow",
        metadata={"help": "A saved pipeline: a folder or a Hub id."},
    )
    flow_map: str | None = field(
        default=None, metadata={"help": "A saved flow map, by default the model if it is one."}
    )
    steps: int = field(default=30, metadata={"help": "Of the ODE and of the SDE."})
    diffusion: str = field(
        default="memoryless", metadata={"choices": DIFFUSIONS, "help": "Coefficient of the SDE."}
    )
    guidance_scale: float | None = field(default=None, metadata=GUIDANCE)
    side: int = field(default=56, metadata={"help": "Of a shown image in pixels, at least."})
    seed: int = 0
    output: str = field(
        default="flow.gif", metadata={"help": f"The animation, one of {', '.join(MOVING)}."}
    )

    def __post_init__(self) -> None:
        check_least(self, 1, "steps", "side")
        check_file(self.output, MOVING)


def rows(args: AnimationArguments) -> tuple[dict[str, list[list[Image.Image]]], list[str]]:
    """Return the states of each row by title, and the names of the classes.

    Raises:
        ValueError: for a `--flow_map` that is none.
    """
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    one = pipe if args.flow_map is None else FlowMatchingPipeline.from_pretrained(args.flow_map)
    saved = one.scheduler
    is_map = saved.config.solver == "flow_map"
    if args.flow_map is not None and not is_map:
        raise ValueError(
            f"--flow_map {args.flow_map} is no flow map, but is saved with the solver "
            f"{saved.config.solver!r}: train one by train_few_steps.py, or leave the flag away"
        )
    labels = list(range(min(pipe.num_classes, 10)))
    asked = {"labels": labels, "guidance_scale": args.guidance_scale, "seed": args.seed}
    if pipe.scheduler.config.solver == "flow_map":
        pipe.scheduler = GaussianFlowScheduler.from_config(
            pipe.scheduler.config, solver="predictor_corrector"
        )
    runs = processes(pipe, args.steps, args.steps, args.diffusion)
    found = {title: states(pipe, steps=steps, **asked) for title, steps in runs}
    if is_map:
        one.scheduler = saved
        found["flow map, 1 step"] = states(one, steps=1, **asked)
    return found, column_names({"class_labels": labels}, pipe.config.id2label)


def main(args: AnimationArguments) -> None:
    """Draw the animation."""
    found, names = rows(args)
    grey = all(image.mode == "L" for image in next(iter(found.values()))[0])
    frames, colours = [], 8 if grey else 256  # eight greys make a small file
    for i in range(args.steps + 1):
        now = {title: kept[min(i, len(kept) - 1)] for title, kept in found.items()}
        frames.append(contact_sheet(now, names, args.side).quantize(colours))
    hold = 12  # frames at each end
    frames = frames[:1] * (hold // 2) + frames + frames[-1:] * hold * 2
    export_to_gif(frames, args.output, fps=12)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    with plain_errors():
        main(parse(AnimationArguments))
