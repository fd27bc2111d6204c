r"""Teachers: saved pipelines whose own samples, and trajectories, a network is trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, random_split
from tqdm.auto import tqdm

from fm_diffusers.paths import expand_like
from fm_diffusers.pipeline import FlowMatchingPipeline
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.predictions import CANONICAL, convert
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.solvers import trajectory
from fm_diffusers.training.flow_maps import clock_of, on_path
from fm_diffusers.training.held_out import HeldOut, held_out_share

#: How many prompts are encoded at once.
PROMPTS = 64


def as_ode(pipe: FlowMatchingPipeline, **config: Any) -> FlowMatchingPipeline:
    """Return a pipeline that samples the ODE, without a calibration and a progress bar.

    Args:
        pipe: the pipeline.
        **config: more of what its scheduler is to be.
    """
    pipe.scheduler = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, diffusion=None, calibration=None, **config
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classes_in_turn(pipe: FlowMatchingPipeline, count: int, first: int = 0) -> dict[str, Any]:
    """Return what `count` samples are asked for: every class in turn."""
    if not pipe.num_classes:
        return {"batch_size": count}
    return {"class_labels": [i % pipe.num_classes for i in range(first, first + count)]}


def split_held_out(
    dataset: Dataset[Any], split: str | None, batch_size: int, seed: int
) -> tuple[Dataset[Any], HeldOut | None]:
    """Return what is trained on, and the share of it that `--validation_split` holds out."""
    if split is None:
        return dataset, None
    share = held_out_share(split)
    assert share is not None  # `check_share`
    generator = torch.Generator().manual_seed(seed)
    trained, kept = random_split(dataset, [1 - share, share], generator)
    return trained, HeldOut(kept, None, batch_size, seed)


def check_share(split: str | None) -> None:
    """Raise a `ValueError` for a `--validation_split` of samples that are drawn."""
    if split is not None and held_out_share(split) is None:
        raise ValueError(
            f"--validation_split {split}: what is drawn has no splits, hold out a share of it, "
            "such as 0.1"
        )


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions under which a teacher draws, by number: classes or prompts, and nothing.

    Attributes:
        table: what the network is fed for each, the last one that of nothing where there is one;
            None for an unconditional network.
        null: the number of that of nothing; None if there is none.
    """

    table: Tensor | None
    null: int | None

    @property
    def count(self) -> int:
        """How many there are beside that of nothing; 1 for an unconditional network."""
        return 1 if self.table is None else len(self.table) - (self.null is not None)

    def __getitem__(self, numbers: Tensor) -> Tensor | None:
        """Return what the network is fed, for numbers."""
        return None if self.table is None else self.table[numbers.to(self.table.device)]


def prompts_of(file: str) -> list[str]:
    """Return the prompts of a file, one a line."""
    lines = [line.strip() for line in Path(file).read_text().splitlines()]
    texts = [line for line in lines if line]
    if not texts:
        raise ValueError(f"--prompts {file} holds no prompt: write one a line")
    return texts


@torch.no_grad()
def conditions_of(pipe: FlowMatchingPipeline, prompts: str | None = None) -> Conditions:
    """Return the conditions of a teacher: all its classes, or the prompts of a file.

    Raises:
        ValueError: for a teacher of prompts without a file, or the reverse.
    """
    if (pipe.takes == "text") != (prompts is not None):
        ways = f"drop --prompts {prompts}", "--prompts names a file of prompts, one a line"
        raise ValueError(f"the teacher takes {pipe.takes}: {ways[prompts is None]}")
    if prompts is not None:
        texts = [*prompts_of(prompts), ""]
        parts = [texts[i : i + PROMPTS] for i in range(0, len(texts), PROMPTS)]
        states = [pipe.encode_condition(Asked(prompt=part)) for part in parts]
        return Conditions(torch.cat([s for s in states if s is not None]), len(texts) - 1)
    if not pipe.network_takes_labels:
        return Conditions(None, None)
    null = pipe.config.null_label
    device: Any = pipe.network.device
    if not pipe.num_classes:  # it knows the label of nothing only
        return Conditions(torch.tensor([null or 0], device=device), None)
    return Conditions(torch.arange(pipe.num_classes + (null is not None), device=device), null)


class Guided(NamedTuple):
    r"""A teacher as the slope :math:`F(y, u)` of a batch.

    Attributes:
        pipe: the teacher.
        condition: of every sample; None for a network without.
        null: that of nothing for every sample; None leaves guidance out.
        guidance_scale: of every sample.
    """

    pipe: FlowMatchingPipeline
    condition: Tensor | None = None
    null: Tensor | None = None
    guidance_scale: Tensor | None = None

    @torch.no_grad()
    def __call__(self, y: Tensor, u: Tensor) -> Tensor:
        """Return the slopes at states `y` and times `u`, shape `(batch,)`."""
        scheduler, network = self.pipe.scheduler, self.pipe.network
        x, t = on_path(scheduler.path, y, u)
        fed = scheduler.to_timestep(t)
        q = network(x, fed, self.condition, return_dict=False)[0][:, : y.shape[1]]
        if self.null is not None:
            assert self.guidance_scale is not None
            null = network(x, fed, self.null, return_dict=False)[0][:, : y.shape[1]]
            q = torch.lerp(null, q, expand_like(self.guidance_scale, q))
        kind = scheduler.config.prediction_type
        return convert(scheduler.path, kind, CANONICAL, x, q.float(), t)


def guided(
    pipe: FlowMatchingPipeline, conditions: Conditions, numbers: Tensor, scale: Tensor | None
) -> Guided:
    """Return the slope of a teacher under conditions by number, guided unless `scale` is None."""
    condition = conditions[numbers]
    if scale is None:
        return Guided(pipe, condition)
    assert conditions.null is not None
    null = conditions[torch.full_like(numbers, conditions.null)]
    device: Any = pipe.network.device
    return Guided(pipe, condition, null, scale.to(device))


@dataclass(frozen=True)
class Runs:
    """How many runs of a teacher are drawn, and how.

    Attributes:
        count: on all processes together.
        steps: of each.
        guidance: the lowest and the highest scale; equal for one.
        dropout: share without a condition, where the teacher has one of nothing.
        batch_size: runs side by side.
        seed: of noise, conditions, scales and nodes.
        ends: whether the first and the last state of each are all that is kept.
    """

    count: int
    steps: int
    guidance: tuple[float, float]
    dropout: float
    batch_size: int
    seed: int
    ends: bool = False

    @property
    def guides(self) -> bool:
        """Whether the teacher is guided."""
        return self.guidance != (1.0, 1.0)

    @torch.no_grad()
    def draw(
        self, pipe: FlowMatchingPipeline, conditions: Conditions, accelerator: Accelerator
    ) -> TensorDataset:
        """Return states `(runs, steps + 1, ...)`, times, numbers of conditions and scales.

        They lie on the CPU, the runs of all processes on each.
        """
        generator = torch.Generator().manual_seed(
            self.seed * 1_000_003 + accelerator.process_index
        )
        share, parts = -(-self.count // accelerator.num_processes), []
        quiet = not accelerator.is_local_main_process
        bar = tqdm(total=share, desc="drawing trajectories", disable=quiet)
        for first in range(0, share, self.batch_size):
            count = min(self.batch_size, share - first)
            drawn = self._batch(pipe, conditions, count, first, generator)
            there = (part.to(accelerator.device) for part in drawn)
            parts.append([accelerator.gather(part).cpu() for part in there])
            bar.update(count)
        bar.close()
        return TensorDataset(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _batch(
        self,
        pipe: FlowMatchingPipeline,
        conditions: Conditions,
        count: int,
        first: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, ...]:
        numbers = torch.arange(first, first + count) % conditions.count
        if conditions.null is not None:
            dropped = torch.rand(count, generator=generator) < self.dropout
            numbers = numbers.masked_fill(dropped, conditions.null)
        low, high = self.guidance
        scale = low + (high - low) * torch.rand(count, generator=generator)
        scheduler, device = pipe.scheduler, cast("torch.device", pipe.network.device)
        scheduler.set_timesteps(self.steps)
        path, kind = scheduler.path, scheduler.config.prediction_type
        x = pipe.prepare_latents(count, generator, None)
        times = moved(scheduler._plan.times, generator)
        slope = guided(pipe, conditions, numbers, scale if self.guides else None)

        def field(x: Tensor, t: Tensor) -> Tensor:
            c, u = path(t), clock_of(path, t).float().to(device).expand(count)
            y = (x / (c.alpha + c.beta)).float()
            return convert(path, CANONICAL, kind, x, slope(y, u), t)

        kept = slice(None, None, self.steps if self.ends else None)
        states = [x, *trajectory(scheduler.solver, field, x, times)][kept]
        sizes = [sum(path(t)[:2]).item() for t in times[kept]]
        y = torch.stack([s / size for s, size in zip(states, sizes, strict=True)], 1)
        u = clock_of(path, times[kept]).float().expand(count, -1)
        return y.cpu(), u.clone(), numbers, scale


def moved(times: Tensor, generator: torch.Generator) -> Tensor:
    """Return the nodes of a run with the inner ones moved, so that a student sees all times.

    All go the same random share of half the way to the next node, or of that to the one before.
    """
    share = torch.rand((), generator=generator, dtype=torch.float64) - 0.5
    others = times[2:] if share > 0 else times[:-2]
    return torch.cat([times[:1], torch.lerp(times[1:-1], others, share.abs()), times[-1:]])
