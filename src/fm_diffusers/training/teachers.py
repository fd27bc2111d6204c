r"""Teachers: saved pipelines whose own samples, and trajectories, a network is trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from fm_diffusers.training.flow_maps import clock_of, time_of
from fm_diffusers.training.held_out import HeldOut, held_out_share

#: By how much log-SNRs of the nodes of a run are moved, at random: so that a student sees all
#: times, and not only the nodes of one grid.
JITTER = 0.5


def as_ode(pipe: FlowMatchingPipeline) -> FlowMatchingPipeline:
    """Return a pipeline that samples the ODE, without a calibration and a progress bar."""
    pipe.scheduler = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, diffusion=None, calibration=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classes_in_turn(pipe: FlowMatchingPipeline, count: int, first: int = 0) -> dict[str, Any]:
    """Return what `count` samples are asked for: every class in turn."""
    if not pipe.num_classes:
        return {"batch_size": count}
    return {"class_labels": [i % pipe.num_classes for i in range(first, first + count)]}


def split_held_out(
    dataset: Dataset, split: str | None, batch_size: int, seed: int
) -> tuple[Dataset, HeldOut | None]:
    """Return what is trained on, and the share of it that `--validation_split` holds out."""
    if split is None:
        return dataset, None
    share = held_out_share(split)
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


@torch.no_grad()
def conditions_of(pipe: FlowMatchingPipeline, prompts: str | None = None) -> Conditions:
    """Return the conditions of a teacher: all its classes, or the prompts of a file.

    Raises:
        ValueError: for a teacher of prompts without a file, or the reverse.
    """
    if (pipe.takes == "text") != (prompts is not None):
        raise ValueError(
            f"the teacher takes {pipe.takes}: "
            + (
                "--prompts names a file of prompts, one a line"
                if prompts is None
                else f"drop --prompts {prompts}"
            )
        )
    if prompts is not None:
        lines = [line.strip() for line in Path(prompts).read_text().splitlines()]
        texts = [line for line in lines if line]
        if not texts:
            raise ValueError(f"--prompts {prompts} holds no prompt: write one a line")
        return Conditions(pipe.encode_condition(Asked(prompt=[*texts, ""])), len(texts))
    if not pipe.network_takes_labels:
        return Conditions(None, None)
    null = pipe.config.null_label
    labels = torch.arange(pipe.num_classes + (null is not None), device=pipe.network.device)
    return Conditions(labels, null)


@torch.no_grad()
def teacher_slope(
    pipe: FlowMatchingPipeline,
    y: Tensor,
    u: Tensor,
    condition: Tensor | None,
    null: Tensor | None,
    guidance_scale: Tensor,
) -> Tensor:
    r"""Return a teacher's slope :math:`F(y, u)`, guided by a scale for each sample.

    Args:
        pipe: the teacher.
        y: states :math:`x/(\alpha + \beta)`, shape `(batch, ...)`.
        u: times, shape `(batch,)`.
        condition: of every sample.
        null: that of nothing for every sample; None leaves guidance out.
        guidance_scale: shape `(batch,)`.
    """
    scheduler = pipe.scheduler
    path, t = scheduler.path, time_of(scheduler.path, u)
    c = path(t)
    x, fed = expand_like(c.alpha + c.beta, y) * y, scheduler.to_timestep(t)
    q = pipe.network(x, fed, condition, return_dict=False)[0][:, : y.shape[1]]
    if null is not None:
        without = pipe.network(x, fed, null, return_dict=False)[0][:, : y.shape[1]]
        q = torch.lerp(without, q, expand_like(guidance_scale, q))
    return convert(path, scheduler.config.prediction_type, CANONICAL, x, q.float(), t)


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
    """

    count: int
    steps: int
    guidance: tuple[float, float]
    dropout: float
    batch_size: int
    seed: int

    @torch.no_grad()
    def draw(
        self, pipe: FlowMatchingPipeline, conditions: Conditions, accelerator: Accelerator
    ) -> TensorDataset:
        """Return states `(runs, steps + 1, ...)`, times, numbers of conditions and scales."""
        generator = torch.Generator().manual_seed(
            self.seed * 1_000_003 + accelerator.process_index
        )
        share, parts = -(-self.count // accelerator.num_processes), []
        quiet = not accelerator.is_local_main_process
        bar = tqdm(total=share, desc="drawing trajectories", disable=quiet)
        for first in range(0, share, self.batch_size):
            count = min(self.batch_size, share - first)
            parts.append(self._batch(pipe, conditions, count, first, generator))
            bar.update(count)
        bar.close()
        joined = [torch.cat(column).to(accelerator.device) for column in zip(*parts, strict=True)]
        return TensorDataset(*(accelerator.gather(column).cpu() for column in joined))

    def _batch(
        self,
        pipe: FlowMatchingPipeline,
        conditions: Conditions,
        count: int,
        first: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, ...]:
        scheduler, device = pipe.scheduler, pipe.network.device
        numbers = torch.arange(first, first + count) % conditions.count
        if conditions.null is not None:
            dropped = torch.rand(count, generator=generator) < self.dropout
            numbers = numbers.masked_fill(dropped, conditions.null)
        low, high = self.guidance
        scale = low + (high - low) * torch.rand(count, generator=generator)
        scheduler.set_timesteps(self.steps)
        x = pipe.prepare_latents(count, generator, None)
        times = self._times(scheduler, generator)
        condition, null = conditions[numbers], None
        if self.guidance != (1.0, 1.0):
            null = conditions[torch.full_like(numbers, conditions.null)]
        told = (condition, null, scale.to(device))
        path = scheduler.path

        def field(x: Tensor, t: Tensor) -> Tensor:
            c, u = path(t), clock_of(path, t).float().to(device).expand(count)
            y = (x / (c.alpha + c.beta)).float()
            slope = teacher_slope(pipe, y, u, *told)
            kind = scheduler.config.prediction_type
            return convert(path, CANONICAL, kind, x, slope, t)

        states = [x, *trajectory(scheduler.solver, field, x, times)]
        sizes = [sum(path(t)[:2]).item() for t in times]
        y = torch.stack([s / size for s, size in zip(states, sizes, strict=True)], 1)
        u = clock_of(path, times).float().expand(count, -1)
        return y.cpu(), u.clone(), numbers, scale

    def _times(self, scheduler: GaussianFlowScheduler, generator: torch.Generator) -> Tensor:
        """Return the nodes of a run, moved at random between their ends."""
        path, times = scheduler.path, scheduler._plan.times
        move = JITTER * (2 * torch.rand((), generator=generator, dtype=torch.float64) - 1)
        return torch.cat([times[:1], path.time(path.log_snr(times[1:-1]) + move), times[-1:]])
