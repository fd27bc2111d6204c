r"""What a sampling step costs beside the network: time, memory traffic, kernels, compilation.

    python -m benchmarks.step.cost --output_dir benchmarks/results

A step of any linear solver reads the sample and the model output and writes the next sample, so it
must move three tensors; what it remembers comes on top. One `torch.add(x, v, alpha=w)` does just
that: it is Euler's step and the yardstick, a copy (two tensors) is beside it. Every scheduler
is run through the same steps with the same made-up model outputs, taking turns in one process, so
that a busy machine slows all of them alike; the median is reported. Kernels, traffic (in units of
the sample) and allocations are counted where PyTorch dispatches them, and compilation by a backend
that only counts the graphs it is given, in a run and in a second one.
"""

import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import HfArgumentParser

from benchmarks.header import header
from fm_diffusers import GaussianFlowScheduler

#: Our configurations by their names in the tables.
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, SDE": {"diffusion": "memoryless"},
}

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

#: diffusers' schedulers: class and configuration. Those without flow sigmas run as for DDPM
#: models, which changes their numbers but not their work.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "FlowMatchEuler": ("FlowMatchEulerDiscreteScheduler", {}),
    "FlowMatchHeun": ("FlowMatchHeunDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", FLOW),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", FLOW | {"solver_order": 3}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", FLOW | {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", FLOW),
    "UniPC-2": ("UniPCMultistepScheduler", FLOW),
    "UniPC-3": ("UniPCMultistepScheduler", FLOW | {"solver_order": 3}),
    "DEIS-2": ("DEISMultistepScheduler", FLOW),
    "DEIS-3": ("DEISMultistepScheduler", FLOW | {"solver_order": 3}),
    "SASolver": ("SASolverScheduler", FLOW),
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "EulerDiscrete": ("EulerDiscreteScheduler", {}),
    "EulerAncestral": ("EulerAncestralDiscreteScheduler", {}),
    "HeunDiscrete": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {}),
    "IPNDM": ("IPNDMScheduler", {}),
}


@dataclass
class StepArguments:
    """Command line."""

    shapes: list[str] = field(default_factory=lambda: ["2x4x8x8", "1x16x128x128"])
    steps: int = field(default=10, metadata={"help": "Steps of one sampling run."})
    repeats: int = field(default=30, metadata={"help": "Runs of every scheduler and shape."})
    seed: int = 0
    output_dir: str = "benchmarks/results"


def contenders() -> dict[str, Any]:
    """Return every scheduler of the comparison by its name."""
    ours = {name: GaussianFlowScheduler(**config) for name, config in OURS.items()}
    theirs = {name: getattr(diffusers, kind)(**config) for name, (kind, config) in PEERS.items()}
    return ours | theirs


class Run:
    """A sampling run in which the model's outputs are made up.

    Args:
        scheduler: any with diffusers' interface.
        shape: of the sample.
        steps: for `set_timesteps`; solvers with several evaluations take more.
        step: called instead of `scheduler.step`, its compiled form for example.
    """

    def __init__(
        self, scheduler: Any, shape: tuple[int, ...], steps: int, step: Callable | None = None
    ) -> None:
        self.scheduler, self.steps, self.step = scheduler, steps, step or scheduler.step
        generator = torch.Generator().manual_seed(0)
        self.start = torch.randn(shape, generator=generator)
        self.outputs = [torch.randn(shape, generator=generator) for _ in range(steps)]

    def __call__(self, around: Callable[[Callable[[], Tensor]], Tensor]) -> None:
        """Take all steps, each as a closure handed to `around`, which must return its result."""
        scheduler, x = self.scheduler, self.start
        scheduler.set_timesteps(self.steps)
        getattr(scheduler, "set_begin_index", lambda index: None)(0)
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        for i, t in enumerate(scheduler.timesteps):
            v, scaled = self.outputs[i % self.steps], scale(x, t)
            x = around(lambda x=scaled, t=t, v=v: self.step(v, t, x, return_dict=False)[0])


def yardsticks(shape: tuple[int, ...], steps: int) -> dict[str, Run]:
    """Return runs whose step is a single pass over memory."""
    passes = {
        "copy": lambda v, x: v.clone(),
        "one add": lambda v, x: torch.add(x, v, alpha=0.1),
        # as many tensors as a step of ours must move: sample, output and two slopes in, two out
        "three copies": lambda v, x: (v.clone(), x.clone(), v.clone())[0],
    }
    idle = SimpleNamespace(timesteps=range(steps), set_timesteps=lambda steps: None)
    return {
        name: Run(idle, shape, steps, lambda v, t, x, return_dict, one=one: (one(v, x),))
        for name, one in passes.items()
    }


def timings(runs: dict[str, Callable], repeats: int, seed: int) -> dict[str, float]:
    """Return the median time of a step in microseconds, all runs taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    rng = np.random.default_rng(seed)
    for repeat in range(-1, repeats):  # the first warms up
        for name in rng.permutation(list(runs)):
            times: list[float] = []

            def timed(one: Callable[[], Tensor], times: list[float] = times) -> Tensor:
                start = time.perf_counter()
                x = one()
                times.append(time.perf_counter() - start)
                return x

            runs[name](timed)
            seconds[name] += times if repeat >= 0 else []
    return {name: 1e6 * statistics.median(times) for name, times in seconds.items()}


class Traffic(TorchDispatchMode):
    """Counts kernels, and in units of the sample tensors moved and tensors allocated."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.kernels, self.moved, self.allocated = numel, 0, 0.0, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Carry out one operation and count what it read and wrote; views cost nothing."""
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        named = dict(zip([a.name for a in func._schema.arguments], args, strict=False))
        named |= kwargs or {}
        written = [a for a in func._schema.arguments if a.is_write]
        overwritten = {
            a.name for a in written if a.kwarg_only or func.overloadpacket.__name__ == "copy_"
        }
        self.kernels += 1
        self.moved += self.size([v for k, v in named.items() if k not in overwritten])
        self.moved += self.size([named[a.name] for a in written]) if written else self.size(out)
        self.allocated += 0.0 if written else self.size(out)
        return out

    def size(self, tree: Any) -> float:
        """Return how many elements a tree of tensors has, in units of the sample."""
        leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        return sum(leaf.numel() for leaf in leaves) / self.numel


def traffic(run: Run) -> dict[str, float]:
    """Return the median over the steps of a run of what `Traffic` counts."""
    steps: list[Traffic] = []

    def counted(one: Callable[[], Tensor]) -> Tensor:
        with Traffic(run.start.numel()) as mode:
            x = one()
        steps.append(mode)
        return x

    run(counted)
    names = ("kernels", "moved", "allocated")
    return {name: statistics.median(getattr(step, name) for step in steps) for name in names}


def compilation(scheduler: Any, shape: tuple[int, ...], steps: int) -> str:
    """Return how many graphs a compiled run needs and a second adds, or why there are none."""
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(scheduler.step, fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(recompile_limit=100, accumulated_recompile_limit=100):
        try:
            Run(scheduler, shape, steps, step)(lambda one: one())
            first = counter.frame_count
            Run(scheduler, shape, steps, step)(lambda one: one())
        except Exception as error:  # whatever it is, it is the result
            return f"fails ({type(error).__name__})"
    return f"{first} + {counter.frame_count - first}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a markdown table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head)]
    lines += [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(args: StepArguments) -> list[dict[str, Any]]:
    """Measure, write `step.csv` and `step.md` and return the rows."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rows: dict[str, dict[str, Any]] = {}
    for text in args.shapes:
        shape = tuple(map(int, text.split("x")))
        runs = yardsticks(shape, args.steps)
        runs |= {name: Run(s, shape, args.steps) for name, s in contenders().items()}
        times = timings(runs, args.repeats, args.seed)
        for name, microseconds in times.items():
            row = rows.setdefault(name, {"scheduler": name})
            row[f"us {text}"] = round(microseconds, 1)
            row[f"x add {text}"] = round(microseconds / times["one add"], 2)
    smallest = tuple(map(int, args.shapes[0].split("x")))
    for name, scheduler in contenders().items():
        counts = traffic(Run(scheduler, shape, args.steps))
        rows[name] |= {key: round(value, 1) for key, value in counts.items()}
        rows[name]["graphs"] = compilation(scheduler, smallest, args.steps)
    columns = list(rows[next(iter(OURS))])
    filled = [{c: row.get(c, "") for c in columns} for row in rows.values()]
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with Path(folder, "step.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(filled)
    text = header("What a step costs", args) + table(filled)
    Path(folder, "step.md").write_text(text)
    print(table(filled))
    return filled


if __name__ == "__main__":
    main(HfArgumentParser(StepArguments).parse_args_into_dataclasses()[0])
