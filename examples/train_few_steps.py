r"""Turn a trained pipeline into one that draws in one evaluation, or in any number of them.

    accelerate launch examples/train_few_steps.py --model outputs/mnist --guidance_scale 2

trains a network of two times, a flow map, which begins as the teacher's network and is saved as a
pipeline of its own::

    pipe = FlowMatchingPipeline.from_pretrained("outputs/mnist-few-steps")
    pipe([3, 7], num_inference_steps=1)

It learns the teacher's guidance too, and is asked once where the teacher is asked twice: one
scale, or with `--guidance_scale 1 4` all from the first to the second, of which a call chooses
one. More steps refine a sample; `diffusion="memoryless"` in the scheduler's configuration samples
the SDE.

Objectives (see `fm_diffusers.flow_maps`): `trajectory` regresses the network on the average slopes
between states of `--num_trajectories` runs of the teacher, which are drawn first; `mean_flow` and
`self_consistency` need their ends only, and ask the teacher for slopes during the training.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_mnist import train

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import distilled_guidance, with_two_times
from fm_diffusers.flow_maps import DERIVATIVES
from fm_diffusers.tables import look_up
from fm_diffusers.training.arguments import TrainingArguments, check_output, parse, start
from fm_diffusers.training.command_line import plain_errors, refuse_unused
from fm_diffusers.training.distillation import OBJECTIVES, Distillation
from fm_diffusers.training.flow_maps import Slope, last_start, warn_of_rounding
from fm_diffusers.training.networks import keep_labels
from fm_diffusers.training.pictures import sample_grid
from fm_diffusers.training.public import public
from fm_diffusers.training.publishing import publish
from fm_diffusers.training.pushing import create_repository
from fm_diffusers.training.teachers import (
    Runs,
    as_ode,
    check_share,
    classes_in_turn,
    conditions_of,
    guided,
    prompts_of,
    split_held_out,
)
from fm_diffusers.training.tuning import network_of


@dataclass
class FewStepsArguments(TrainingArguments):
    """Command line."""

    model: str = field(
        default="outputs/mnist", metadata={"help": "The teacher: a folder or a Hub id."}
    )
    init_from: str | None = field(
        default=None,
        metadata={"help": "A flow map of the same teacher to train further: a folder or Hub id."},
    )
    output_dir: str = "outputs/mnist-few-steps"
    objective: str = field(
        default="trajectory", metadata={"choices": OBJECTIVES, "help": "See the script."}
    )
    guidance_scale: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Of the teacher; two are the ends of those that a call can choose."},
    )
    prompts: str | None = field(
        default=None,
        metadata={"help": "For a teacher that takes text: a file, one prompt a line."},
    )
    num_trajectories: int = field(
        default=8_000,
        metadata={
            "help": "Runs that are drawn first. Their states are kept in memory, of 28x28 images "
            "3 KB each: 0.33 GB for 8,000 runs of 12 steps, and twice that at the end of the "
            "drawing; mean_flow and self_consistency keep two of each run."
        },
    )
    trajectory_steps: int = field(default=12, metadata={"help": "Steps of each."})
    sample_batch_size: int = 250
    to_data: float = field(
        default=0.3, metadata={"help": "Share of the steps that are made to land at the data."}
    )
    from_noise: float = field(
        default=0.25,
        metadata={"help": "Of trajectory: share of the steps that begin at the noise."},
    )
    slope_share: float = field(
        default=0.1, metadata={"help": "Share of a batch that learns the slope, of the ODE."}
    )
    derivative: str = field(
        default="difference",
        metadata={
            "choices": DERIVATIVES,
            "help": "Of mean_flow: jvp is exact, not for all networks.",
        },
    )
    label_dropout: float = field(default=0.1, metadata={"help": "As in the first training."})
    num_train_epochs: int | None = field(
        default=None, metadata={"help": "By default 40: each takes one other step of every run."}
    )
    train_batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_train_steps is None and self.num_train_epochs is None:
            self.num_train_epochs = 40
        look_up("--objective", dict.fromkeys(OBJECTIVES), self.objective)
        look_up("--derivative", DERIVATIVES, self.derivative)
        check_share(self.validation_split)
        for name in ("to_data", "from_noise", "slope_share", "label_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must lie in [0, 1], got {getattr(self, name)}")
        refuse_unused(self, {"from_noise": "trajectory", "derivative": "mean_flow"})
        if self.num_trajectories < self.train_batch_size:
            raise ValueError(
                f"--num_trajectories {self.num_trajectories} are fewer than --train_batch_size "
                f"{self.train_batch_size}: draw more, or choose a smaller batch"
            )
        scales = self.guidance_scale
        ascending = scales == sorted({*scales}) and all(map(math.isfinite, scales))
        if len(scales) not in (1, 2) or not ascending:
            raise ValueError(
                "--guidance_scale is one number, or the lowest and the highest of several, got "
                f"{scales}"
            )

    @property
    def distilled_guidance(self) -> float | list[float] | None:
        """What the network will say that it has learned."""
        if self.guidance_scale == [1.0]:
            return None
        return self.guidance_scale if len(self.guidance_scale) == 2 else self.guidance_scale[0]


def load_teacher(args: FewStepsArguments) -> FlowMatchingPipeline:
    """Return the teacher: by the default solver from noise to data, whatever it was saved with.

    Raises:
        ValueError: if it has no flow map, or no guidance of the scale that is asked for.
    """
    pipe, scale = FlowMatchingPipeline.from_pretrained(args.model), args.distilled_guidance
    if (learned := distilled_guidance(pipe.network)) is not None:
        raise ValueError(
            f"{args.model} has learned guidance_scale={learned} itself: name its own teacher"
        )
    if pipe.guider is not None:
        raise ValueError(
            f"{args.model} has a guider, {type(pipe.guider).__name__}, which is not learned: save "
            "it with pipe.guider = None, and say --guidance_scale"
        )
    as_ode(pipe, solver="predictor_corrector", grid=None, sampling_path=None)
    last_start(pipe.scheduler)  # raises if there is no map
    if pipe.scheduler.path.coupled and args.objective != "trajectory":
        raise ValueError(
            f"{args.model} was trained with coupled noise, and --objective {args.objective} draws "
            "noise of its own: take trajectory, which learns from whole runs"
        )
    labels = pipe.takes == "labels" and pipe.config.null_label is None
    if scale is not None and (labels or pipe.takes == "nothing"):
        raise ValueError(
            f"--guidance_scale {scale}: {args.model} has no "
            + ("label for 'no class', from which guidance leads away" if labels else "condition")
            + "; leave it out"
        )
    return pipe


def described(scheduler: GaussianFlowScheduler, network: Any) -> dict[str, Any]:
    """Return what a network learns, and its sizes."""
    learned = ("path", "path_kwargs", "prediction_type")
    sizes = {name: value for name, value in network.config.items() if name[0] != "_"}
    return {name: scheduler.config[name] for name in learned} | sizes


def load_student(args: FewStepsArguments, teacher: FlowMatchingPipeline) -> nn.Module:
    """Return the network that is trained: the teacher's, or that of `--init_from`.

    Raises:
        ValueError: if `--init_from` is no flow map of such a teacher and guidance.
    """
    begun = with_two_times(teacher.network, args.distilled_guidance)
    if args.init_from is None:
        return keep_labels(begun)
    pipe = FlowMatchingPipeline.from_pretrained(args.init_from).to(teacher.device)
    network = with_two_times(pipe.network, args.distilled_guidance)
    found, own = described(pipe.scheduler, network), described(teacher.scheduler, begun)
    for name in own:
        if found.get(name) != own[name]:
            raise ValueError(
                f"--init_from {args.init_from} is no flow map of {args.model}: its {name} is "
                f"{found.get(name)!r} in place of {own[name]!r}; name one, or leave it out"
            )
    return keep_labels(network)


def shown_conditions(args: FewStepsArguments, teacher: FlowMatchingPipeline) -> dict[str, Any]:
    """Return what a row of pictures shows: one of each of ten classes, or of ten prompts."""
    if args.prompts is not None:
        return {"prompt": prompts_of(args.prompts)[:10]}
    return classes_in_turn(teacher, min(teacher.num_classes, 10) or 10)


def main(args: FewStepsArguments) -> None:
    check_output(args)
    accelerator = start(args)
    warn_of_rounding(args.objective, accelerator.mixed_precision, args.derivative)
    repo_id = create_repository(args, accelerator)
    teacher = load_teacher(args).to(accelerator.device)
    network = load_student(args, teacher)
    scheduler = GaussianFlowScheduler.from_config(teacher.scheduler.config, solver="flow_map")
    conditions = conditions_of(teacher, args.prompts)
    scales = (args.guidance_scale[0], args.guidance_scale[-1])
    drawn = (args.num_trajectories, args.trajectory_steps, scales, args.label_dropout)
    runs = Runs(*drawn, args.sample_batch_size, args.seed, args.objective != "trajectory")
    split = (args.validation_split, args.train_batch_size, args.seed)
    trained, held_out = split_held_out(runs.draw(teacher, conditions, accelerator), *split)
    shares = (args.slope_share, args.to_data, args.from_noise)
    learn = Distillation(args.objective, *shares, args.derivative, last_start(scheduler))
    chooses = len(args.guidance_scale) == 2

    def loss_of(network: nn.Module, batch: list[Tensor]) -> Tensor:
        states, u, numbers, scale = batch
        slope = Slope(network, scheduler, conditions[numbers], scale if chooses else None)
        exact = guided(teacher, conditions, numbers, scale if runs.guides else None)
        return learn(slope, exact, states, u)

    def pipeline(network: nn.Module) -> FlowMatchingPipeline:
        return network_of(teacher, network, scheduler=scheduler)

    shown = shown_conditions(args, teacher)
    chosen = {"guidance_scale": scales[1]} if chooses else {}

    def draw(network: nn.Module) -> Image.Image:
        return sample_grid(pipeline(network), shown, **chosen)

    loader = DataLoader(trained, args.train_batch_size, shuffle=True, drop_last=True)
    network = network.requires_grad_(True).train()
    outcome = train(args, accelerator, network, loader, loss_of, draw, held_out)
    if outcome is not None and accelerator.is_main_process:
        student, figures = pipeline(outcome[0]), outcome[1]
        told = {"teacher": public(args.model), "objective": args.objective}
        told["guidance scale"] = ", ".join(map(str, args.guidance_scale))
        told["trajectories"] = f"{args.num_trajectories} of {args.trajectory_steps} steps"
        dataset = f"samples of {public(args.model)}"
        publish(args, student, draw(outcome[0]), told | figures, dataset, repo_id, shown)
    accelerator.end_training()


if __name__ == "__main__":
    with plain_errors():
        main(parse(FewStepsArguments))
