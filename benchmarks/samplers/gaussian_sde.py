r"""What an SDE sampler makes of Gaussian data: mean and standard deviation, without sampling.

    python -m benchmarks.samplers.gaussian_sde --output_dir benchmarks/results

For data :math:`z \sim N(m, s^2)` the exact field is affine in x, and so is every sampler of it:
with the noise :math:`\xi_1` of the start and :math:`\xi_2, ..., \xi_n` drawn on the way it returns

.. math:: x = c_0 + \sum_k c_k \xi_k, \qquad E[x] = c_0, \qquad Var[x] = \sum_k c_k^2 .

The samplers' own code runs on a batch whose row 0 has no noise and whose row k has the k-th noise
alone, set to 1, so that their difference is :math:`c_k`. The columns of the batch are data of
several standard deviations s, all of mean 1. What is reported is the bias, E[x] - 1 and std/s - 1:
exact up to rounding, the same in every run.

Ours is every coefficient of dW in `DIFFUSIONS` on every path of `PATHS`, by the default solver and
by `ddim`, on the default grid and on equal steps in t; on the linear path also weaker and
stronger. The ODE stands beside them. Peers are those of `sde_peers`. It writes `gaussian_sde.csv`,
`gaussian_sde.md` and `gaussian_sde.png`.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from diffusers.utils import torch_utils
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.header import header
from benchmarks.samplers.gaussian_sde_report import TITLE, draw, report
from benchmarks.samplers.peers import Preserving
from benchmarks.samplers.sde import run_ours
from benchmarks.samplers.sde_peers import SDE_PEERS
from fm_diffusers import DIFFUSIONS, PATHS
from fm_diffusers.certify.truth import gaussian_field

#: Our solvers and grids by their names in the tables.
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, ddim": {"solver": "ddim"},
    "ours, equal steps": {"grid": "uniform"},
}

#: The coefficients of dW; the other rows of `DIFFUSIONS` say what a whole step does.
RATES = [name for name in DIFFUSIONS if DIFFUSIONS[name].profile is not None]

#: Multiples of the scale that a coefficient has by default.
STRENGTHS = (0.1, 1.0, 10.0)


@dataclass
class Arguments:
    """Command line."""

    output_dir: str = "benchmarks/results"
    widths: list[float] = field(
        default_factory=lambda: [0.1, 0.35, 0.5, 1.0, 2.0],
        metadata={"help": "Standard deviations of the data."},
    )
    steps: list[int] = field(default_factory=lambda: [8, 16, 32, 250])


class Row(NamedTuple):
    """One run.

    Attributes:
        method: a name in `OURS` or `SDE_PEERS`.
        path: ours, or that of the peer.
        diffusion: the coefficient; "ODE" is none, "own" is a peer's.
        strength: the multiple of its default scale.
        steps: as many as evaluations of the field.
        std: relative bias of the standard deviation, for every width.
        mean: bias of the mean of 1, for every width.
    """

    method: str
    path: str
    diffusion: str
    strength: float
    steps: int
    std: tuple[float, ...]
    mean: tuple[float, ...]


@contextmanager
def unit_noise() -> Iterator[None]:
    """Make the k-th draw of diffusers' `randn_tensor` the unit vector of row k + 1."""
    original, row = torch_utils.randn_tensor, 1

    def draw(shape: tuple, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        nonlocal row
        row += 1
        unit = torch.zeros(shape, dtype=dtype)
        unit[row] = 1
        return unit

    users = [m for m in list(sys.modules.values()) if vars(m).get("randn_tensor") is original]
    patches = [patch.object(module, "randn_tensor", draw) for module in users]
    try:
        for p in patches:
            p.start()
        yield
    finally:
        for p in patches:
            p.stop()


def bias(
    sample: Callable[[Tensor], Tensor], widths: list[float], steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the biases of standard deviation and mean of what `sample` makes of noise."""
    # no noise, that of the start, and at most one and a half draws a step
    x = torch.zeros(2 + steps + steps // 2, len(widths), dtype=torch.float64)
    x[1] = 1
    with unit_noise():
        end = sample(x).double()
    std = (end[1:] - end[0]).norm(dim=0) / torch.tensor(widths, dtype=torch.float64)
    return tuple((std - 1).tolist()), tuple((end[0] - 1).tolist())


def ours(method: str, path: str, name: str, strength: float, widths: list[float], n: int) -> Row:
    """Run one of ours; `name` is the coefficient."""
    noise = {"diffusion": None}
    if name != "ODE":
        scale = strength * DIFFUSIONS[name].scale
        noise = {"diffusion": name, "diffusion_kwargs": {"scale": scale}}
    config = {"path": path, **noise, **OURS[method]}
    f = gaussian_field(PATHS[path](), "velocity", widths)
    figures = bias(lambda x: run_ours(config, f, x, n, None, None), widths, n)
    return Row(method, path, name, strength, n, *figures)


def theirs(name: str, widths: list[float], n: int) -> Row:
    """Run a peer as its users do."""
    peer = SDE_PEERS[name]
    kind = isinstance(peer, Preserving)
    path, prediction = ("variance_preserving", "epsilon") if kind else ("linear", "velocity")
    f = gaussian_field(PATHS[path](), prediction, widths)
    return Row(name, path, "own", 1.0, n, *bias(lambda x: peer(f, x, n), widths, n))


def measure(args: Arguments) -> Iterator[Row]:
    """Yield a row for every sampler and number of steps."""
    for method, path, name, n in product(OURS, PATHS, ["ODE", *RATES], args.steps):
        yield ours(method, path, name, 1.0, args.widths, n)
    others = [strength for strength in STRENGTHS if strength != 1]
    for method, name, strength, n in product(list(OURS)[:2], RATES, others, args.steps):
        yield ours(method, "linear", name, strength, args.widths, n)
    for name, n in product(SDE_PEERS, args.steps):
        yield theirs(name, args.widths, n)


def save(rows: list[Row], widths: list[float], file: Path) -> None:
    """Write the rows, a column for each width."""
    columns = [f"{figure} {width:g}" for figure in ("std", "mean") for width in widths]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*Row._fields[:5], *columns])
        for row in rows:
            writer.writerow([*row[:5], *(f"{value:.3e}" for value in row.std + row.mean)])


def main(args: Arguments) -> list[Row]:
    """Compute, and write the figures, the tables and the picture."""
    torch.set_num_threads(1)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(measure(args))
    save(rows, args.widths, folder / "gaussian_sde.csv")
    text = header(TITLE, args) + report(rows, args.widths)
    (folder / "gaussian_sde.md").write_text(text)
    draw(rows, args.widths, folder / "gaussian_sde.png")
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
