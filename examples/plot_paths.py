r"""Pictures of the theory: conditional and marginal paths, drawn from exact fields.

    python examples/plot_paths.py --output_dir outputs/paths --path linear

A path carries noise to one data point :math:`z` along a field known in closed form. The marginal
field is the posterior mean of these conditional ones, "which data point might this be",

.. math:: u_t(x) = \sum_z p(z | x_t = x)\, u_t(x | z),

and it carries noise to the whole data distribution, as an ODE or, with any :math:`\sigma_t`, as
the SDE :math:`dX = [u_t + \sigma_t^2/2 \nabla\log p_t] dt + \sigma_t dW`. A network learns this
field; for a mixture or a finite data set it is a softmax, so nothing is trained here:

- `conditional_and_marginal.png`: both rows of the theory's figure, for two moons;
- `conditional_and_marginal_digits.png`: the same for the 8x8 digits of scikit-learn;
- `posterior_weights.png`: which digit might this be?
- `equal_marginals.png`: an ODE and two SDEs with the same marginals; their errors are printed.

Reference: Holderrieth, Erives, "An Introduction to Flow Matching and Diffusion Models",
https://arxiv.org/abs/2506.02070.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from fm_diffusers.diffusions import Diffusion, get_diffusion
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.paths import PATHS, GaussianPath
from fm_diffusers.solvers import SOLVERS, trajectory
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.folders import make

TIME = LinearSegmentedColormap.from_list("time", ["#3d5a98", "#a569a6", "#e8743b"])
STEPS = 150
UNIT_NOISE = "linear", "cosine", "polynomial", "variance_preserving"  # names in PATHS


@dataclass
class PathsArguments:
    """Command line."""

    output_dir: str = field(default="outputs/paths", metadata={"help": "Where the pictures go."})
    path: str = field(
        default="linear", metadata={"choices": UNIT_NOISE, "help": "From noise to data."}
    )


def even_times(n: int) -> torch.Tensor:
    """Return n + 1 times from noise to data."""
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal noise in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simulate(
    path: GaussianPath, data: GaussianMixture, eps: Tensor, diffusion: Diffusion | None = None
) -> tuple[Tensor, Tensor]:
    """Return the times `(steps + 1,)` and the samples `(steps + 1, *eps.shape)` from noise on."""
    times, generator = even_times(STEPS), torch.Generator().manual_seed(1)
    samples = trajectory(  # the midpoint rule never asks at t = 1, where the field may be stiff
        SOLVERS["midpoint"](path, "velocity", diffusion),
        data.field(path, "velocity"),
        eps,
        times,
        noise=lambda t, s: torch.randn(eps.shape, generator=generator, dtype=eps.dtype),
    )
    return times, torch.stack([eps, *samples])


def density(path: GaussianPath, data: GaussianMixture, x: Tensor, t: float | Tensor) -> Tensor:
    """Return the exact marginal density `p_t(x)`, shape `(batch,)`."""
    return data.log_joint(path, x, t).logsumexp(1).exp()


def two_moons() -> GaussianMixture:
    """Return two moons of small Gaussians, away from the noise to see the way."""
    angle = torch.linspace(0, math.pi, 40, dtype=torch.float64)
    moon = torch.stack([2 * angle.cos() - 1, 2 * angle.sin() - 0.5], 1)
    return GaussianMixture(torch.cat([moon, -moon]) + torch.tensor([8.0, 0.0]), 0.15)


def conditional_and_marginal(path: GaussianPath) -> Figure:
    """Draw both rows of the theory's figure for two moons."""
    data, eps, sde = two_moons(), randn(400, 2, seed=2), get_diffusion("beta")
    z = data.means[12]
    left, right, low, high = box = (-3.2, 12.0, -3.2, 3.6)
    x = torch.linspace(left, right, 300).double(), torch.linspace(low, high, 140).double()
    p = density(path, data, torch.cartesian_prod(*x), 1.0).view(300, 140).T

    figure, axes = plt.subplots(2, 3, figsize=(15, 4.8), layout="constrained")
    for row, target in zip(axes, (GaussianMixture(z[None], 1e-2), data), strict=True):
        z_target = target.sample(len(eps), torch.Generator().manual_seed(0))
        for t in even_times(4):
            x_t = path.flow_map(z_target, eps, t)
            row[0].scatter(*x_t.T, s=5, color=TIME(t.item()), alpha=0.7, lw=0)
        draw_trajectories(row[1], *simulate(path, target, eps[:40]))
        draw_trajectories(row[2], *simulate(path, target, eps[:40], sde))
    for ax in axes.flat:
        ax.imshow(p, extent=box, origin="lower", cmap="Greys", vmax=2 * p.max(), zorder=0)
        ax.set(xlim=(left, right), ylim=(low, high), xticks=[], yticks=[])
    for ax in axes[0]:
        ax.plot(*z, marker="*", ms=13, c="white", mec="black", zorder=5)
        ax.annotate("$z$", z, (5, 8), textcoords="offset points", fontsize="large")
    axes[0, 0].set(title="samples of the path", ylabel=r"conditional, $p_t(x\,|\,z)$")
    axes[0, 1].set(title=r"ODE, $dX = u_t\,dt$")
    axes[0, 2].set(title=r"SDE, $\sigma_t^2 = 2\beta_t$")
    axes[1, 0].set(ylabel=r"marginal, $p_t(x)$")
    scale, time = plt.cm.ScalarMappable(cmap=TIME), "time $t$: noise 0, data 1"
    figure.colorbar(scale, ax=axes, label=time, ticks=even_times(4), pad=0.01)
    return figure


def draw_trajectories(ax: Axes, times: Tensor, x: Tensor) -> None:
    """Draw trajectories `(steps + 1, n, 2)` in the colour of their time."""
    colors = TIME(times[:-1].repeat_interleave(x.shape[1]))
    segments = torch.stack([x[:-1], x[1:]], 2).flatten(0, 1)
    ax.add_collection(LineCollection(segments.numpy(), colors=colors, lw=0.8, alpha=0.8))
    for end, t in ((x[0], 0.0), (x[-1], 1.0)):
        ax.scatter(*end.T, s=12, color=TIME(t), zorder=4)


def digits(bandwidth: float = 0.05) -> tuple[GaussianMixture, Tensor]:
    """Return the 1797 digits in [-1, 1] as a mixture, and their labels."""
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    return GaussianMixture(images.double().view(-1, 8, 8) / 8 - 1, bandwidth), labels


def conditional_and_marginal_digits(path: GaussianPath) -> Figure:
    """Draw the same for digits: from one noise to a given digit, and to whichever digit."""
    (data, _), eps = digits(), randn(1, 8, 8, seed=30)
    times, ode = simulate(path, data, eps)
    _, sde = simulate(path, data, eps, get_diffusion("memoryless"))
    mean, z = data.field(path, "sample"), data.means[:1].expand(STEPS + 1, 8, 8)
    rows = [
        ("$x_t$", path.flow_map(z, eps, times)),
        ("ODE: $x_t$", ode),
        (r"$E[z\,|\,x_t]$", map(mean, ode, times)),
        ("memoryless\nSDE: $x_t$", sde),
        (r"$E[z\,|\,x_t]$", map(mean, sde, times)),
    ]
    figure, axes = plt.subplots(5, 11, figsize=(13, 6.8), layout="constrained")
    for row, (name, images) in zip(axes, rows, strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax, image in zip(row, list(images)[:: STEPS // 10], strict=True):
            draw_image(ax, image)
    for ax, t in zip(axes[-1], times[:: STEPS // 10], strict=True):
        ax.set_xlabel(f"$t = {t:.1f}$")
    axes[0, 5].set_title("conditional: the data is one digit $z$", weight="bold")
    axes[1, 5].set_title(f"marginal: the data is all {len(data.means)} digits", weight="bold")
    return figure


def draw_image(ax: Axes, image: Tensor) -> None:
    """Draw one digit, -1 black and 1 white."""
    ax.imshow(image.view(8, 8), cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])


def posterior_weights(path: GaussianPath, columns: int = 7, top: int = 4) -> Figure:
    """Draw which digits the sample of the ODE might be, at equal steps in the weights' entropy."""
    data, labels = digits()
    times, x = simulate(path, data, randn(1, 8, 8, seed=30))
    p = torch.cat([data.posterior_weights(path, *at) for at in zip(x, times, strict=True)])
    count = torch.special.entr(p).sum(1).exp()  # as many equally likely digits
    levels = len(labels) ** even_times(columns - 1).flip(0)[1:-1]
    shown = [0, *((count < level).nonzero()[0].item() for level in levels), STEPS]

    size = {"figsize": (13, 8), "height_ratios": [1.2, 1.4] + top * [1]}
    figure, axes = plt.subplots(2 + top, columns, layout="constrained", **size)
    for column, i in zip(axes.T, shown, strict=True):
        draw_image(column[0], x[i])
        column[0].set_title(f"$t = {times[i]:.2f}$\n1 of {count[i]:.0f}")
        classes = torch.zeros(10, dtype=p.dtype).index_add(0, labels, p[i])
        column[1].bar(range(10), classes, color=TIME(times[i].item()))
        column[1].set(ylim=(0, 1), xticks=range(10), yticks=[])
        for ax, k in zip(column[2:], p[i].topk(top).indices, strict=True):
            draw_image(ax, data.means[k])
            ax.set_xlabel(f"{p[i, k]:.1%}")
            ax.set_visible(p[i, k].item() > 1e-4)
    names = "$x_t$", "weight of\neach class", "the digits\nof largest\nweight"
    for ax, name in zip(axes[:3, 0], names, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(r"Which digit $z$ might this be? The weights $p(z\,|\,x_t)$", weight="bold")
    return figure


def equal_marginals(path: GaussianPath, n: int = 10000) -> Figure:
    """Draw one mixture reached as ODE and as SDE, and print how near each comes to the data."""
    means = torch.tensor([[-2.0], [0.5], [2.5]], dtype=torch.float64)
    data = GaussianMixture(means, torch.tensor([0.3, 0.5, 0.2]), torch.tensor([0.3, 0.5, 0.2]))
    y = torch.linspace(-4, 4, 401, dtype=torch.float64)
    p = torch.stack([density(path, data, y[:, None], t) for t in even_times(STEPS)], 1)
    fresh = (data.sample(n, torch.Generator().manual_seed(seed)) for seed in range(20))
    errors = sorted(wasserstein(x[:, 0], p[:, -1], y) for x in fresh)
    print(f"{n} fresh samples of the data: W1 from {errors[0]:.3f} to {errors[-1]:.3f}")
    rows = {
        "ODE": None,
        "SDE, 'beta' with scale 0.25": get_diffusion("beta", 0.25),
        "SDE, 'memoryless'": get_diffusion("memoryless"),
    }
    size = {"figsize": (16, 4.6), "width_ratios": 3 * [3, 1]}
    figure, axes = plt.subplots(1, 6, sharey=True, layout="constrained", **size)
    for (ax, side), (name, diffusion) in zip(axes.reshape(3, 2), rows.items(), strict=True):
        times, x = simulate(path, data, randn(n, 1), diffusion)
        end, memory = x[-1, :, 0], torch.corrcoef(x[[0, -1], :, 0])[0, 1]
        error = wasserstein(end, p[:, -1], y)
        print(f"{name}: W1 {error:.3f}, correlation of start and end {memory:.2f}")
        ax.pcolormesh(times, y, p.sqrt(), cmap="Greys", vmax=1.4)
        for line in x[:, :40, 0].T:
            ax.plot(times, line, lw=0.8, color=plt.cm.viridis((line[0].item() + 2) / 4))
        ax.set(title=f"{name}\ncorrelation of start and end {memory:.2f}", xlabel="time $t$")
        ax.set_xlim(0, 1)
        bars = {"density": True, "orientation": "horizontal", "color": TIME(1.0)}
        side.hist(end, bins=100, range=(-4, 4), **bars)
        side.plot(p[:, -1], y, c="black", lw=1)
        side.set(title=f"endpoints\n$W_1 = {error:.3f}$", xticks=[], ylim=(-4, 4))
    axes[0].set_ylabel("$x$, coloured by its start")
    return figure


def wasserstein(x: Tensor, p: Tensor, y: Tensor) -> float:
    r"""Return :math:`W_1 = \int |F - G| dy` of samples `x` and a density `p` on the grid `y`."""
    h = y[1] - y[0]
    below = torch.searchsorted(x.sort().values, y + h / 2) / len(x)
    return (h * (below - h * p.cumsum(0)).abs().sum()).item()


PICTURES = (
    conditional_and_marginal,
    conditional_and_marginal_digits,
    posterior_weights,
    equal_marginals,
)


def main(args: PathsArguments) -> None:
    """Draw and save the pictures."""
    folder = Path(args.output_dir)
    make(folder)
    matplotlib.use("Agg")
    torch.set_num_threads(1)  # the tensors are small: more threads are slower
    for draw in PICTURES:
        file = folder / f"{draw.__name__}.png"
        draw(PATHS[args.path]()).savefig(file, dpi=130)
        print(file)


if __name__ == "__main__":
    with plain_errors():
        main(parse(PathsArguments))
