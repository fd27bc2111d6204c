"""Brownian paths, their clock, and the samples to which more and more steps converge on them."""

import csv
import math
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch
from covers import each
from loops import brownian, loop, model_of, seeded, start
from oracles import NO_SDES

from benchmarks.samplers import brownian as benchmark
from fm_diffusers import DIFFUSIONS, PATHS, SOLVERS
from fm_diffusers.diffusions import get_diffusion, windowed
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.scheduling import noise
from fm_diffusers.scheduling.brownian import BrownianClock, BrownianPaths

pytest.importorskip("torchsde", reason="Brownian paths need torchsde: pip install .[sde]")

T = torch.tensor([0.02, 0.3, 0.31, 0.7, 0.999], dtype=torch.float64)
#: Coefficients whose noise is infinite and finite at pure noise, and vanishes at the data.
VANISHING = ["memoryless", "beta", "linear"]
LINES = ["linear", "cosine", "variance_preserving"]
DRIVEN = ["predictor_corrector", "euler_maruyama"]


def few(always, everything):
    """Return all of it as parameters, marked slow where it is not among the first."""
    slow = pytest.mark.slow
    return [pytest.param(*p, marks=() if p in always else slow) for p in everything]


def spans_of(path, diffusion, times):
    clock = BrownianClock(PATHS[path](), get_diffusion(diffusion))
    return clock.spans(list(zip(times[:-1], times[1:], strict=True)))


# --- the clock -----------------------------------------------------------------------------------

#: The clock in closed form, up to a factor: V = 1 on the cosine path.
CLOCKS = {
    ("linear", "memoryless", 1.0): lambda t: t**2 / (t**2 + (1 - t) ** 2),
    ("cosine", "memoryless", 0.3): lambda t: torch.sin(math.pi / 2 * t) ** (2 * 0.3),
    ("cosine", "flow_grpo", 0.7): lambda t: torch.sin(math.pi / 2 * t) ** (2 * 0.245),
    ("cosine", "precise", 0.7): lambda t: torch.sin(math.pi / 2 * t) ** (2 * 0.245),
    ("cosine", "constant", 1.5): lambda t: torch.expm1(1.5**2 * t),
    ("cosine", "beta_squared", 2.0): lambda t: torch.expm1(
        2 * 2.0 * (t / 2 + torch.sin(math.pi * t) / (2 * math.pi))
    ),
    ("linear", "dance_precise", 0.3): lambda t: torch.expm1(0.3**2 * torch.atan2(t, 1 - t)),
}


@pytest.mark.parametrize(("path", "diffusion", "scale"), CLOCKS)
def test_the_clock_is_that_of_the_closed_form(path, diffusion, scale):
    clock = BrownianClock(PATHS[path](), get_diffusion(diffusion, scale))
    ratio = torch.exp2(clock(T)) / CLOCKS[path, diffusion, scale](T)
    torch.testing.assert_close(ratio, ratio[:1].expand(len(T)), rtol=1e-4, atol=0)
    only = windowed(clock.diffusion, [(0.3, 0.5)])
    assert torch.equal(BrownianClock(clock.path, only)(T), clock(T))


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@each("path", PATHS)
def test_every_clock_rises_and_is_finite_at_the_data(diffusion, path):
    clock = BrownianClock(PATHS[path](), get_diffusion(diffusion))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if diffusion not in NO_SDES else "ignore")
        reading = clock(torch.linspace(0, 1, 997, dtype=torch.float64))
    assert (reading.diff() > 0).all() and reading[-1].isfinite()


@pytest.mark.parametrize("diffusion", NO_SDES)
def test_what_no_steps_refine_says_so(diffusion):
    with pytest.warns(UserWarning, match=f"{diffusion}.*the step of no SDE.*take 'precise'"):
        brownian(diffusion=diffusion, solver="ddim")


# --- the increments ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "discrete"])
@pytest.mark.parametrize("diffusion", ["memoryless", "constant", "flow_grpo", "zero_ends"])
def test_the_increments_of_two_steps_are_that_of_the_whole(diffusion, path):
    paths, like = BrownianPaths((3, 2**61)), torch.zeros(2, 50, dtype=torch.float64)
    times = [0.0, 0.1, 0.1001, 0.63, 1.0]
    parts, (whole,) = spans_of(path, diffusion, times), spans_of(path, diffusion, times[::4])
    unit = 2.0**whole.stop
    sizes = [(2.0**span.stop - 2.0**span.start) / unit for span in (*parts, whole)]
    # asked in another order than that of the times
    found = {span: paths.increments(span, like) for span in (whole, *parts[::-1])}
    total = sum(math.sqrt(size) * found[s] for s, size in zip(parts, sizes, strict=False))
    torch.testing.assert_close(total, math.sqrt(sizes[-1]) * found[whole], rtol=0, atol=1e-3)
    assert not torch.equal(*found[whole])


@pytest.mark.parametrize("diffusion", ["memoryless", "constant", "er_sde"])
def test_increments_are_standard_normal_and_independent(diffusion):
    count = 20_000
    spans = spans_of("linear", diffusion, [0.0, 1e-7, 0.2, 0.5, 0.6, 0.9999999, 1 - 1e-12, 1.0])
    paths, like = BrownianPaths((0, 1)), torch.zeros(2, count // 2)
    draws = torch.stack([paths.increments(span, like).flatten() for span in spans])
    assert (draws.mean(1).abs() < 4.5 / count**0.5).all()
    error = (draws @ draws.T / count - torch.eye(len(draws))).abs()
    assert (error < 4.5 * (2 / count) ** 0.5).all()
    assert ((draws**4).mean(1) - 3).abs().max() < 4.5 * (96 / count) ** 0.5


def test_another_scale_has_another_path():
    """Steps of two noise levels, one after the other, would else read the same piece."""
    scheduler, x = brownian(diffusion="flow_grpo"), torch.zeros(1, 10_000, dtype=torch.float64)
    t, place = scheduler.timesteps[2], scheduler.first_place(1, seeded(), index=2)

    def drawn(level):
        transition = scheduler.transition(x, t, x, place, noise_level=level)
        return (transition.sample() - transition.mean) / transition.std

    own, same, other = (drawn(level) for level in (None, 0.7, 0.3))
    assert torch.equal(own, same)
    assert abs((own * other).mean()) < 4.5 / 100


# --- more and more steps -------------------------------------------------------------------------


def exact(scheduler, x):
    r"""Return where the SDE of data N(0, 1) goes from noise, by one increment of its paths.

    With the variance V of samples, x/sqrt(V) keeps exp(-L), L the integral of sigma^2/(2 V).
    """
    path, diffusion = scheduler.path, scheduler.diffusion
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    c = path(t)
    kept = torch.exp(-(diffusion.squared(path, t) / (2 * (c.alpha**2 + c.beta**2))).mean())
    kept = kept if scheduler.config.diffusion != "memoryless" else 0 * kept  # L is infinite
    (whole,) = BrownianClock(path, diffusion).spans([(0.0, 1.0)])
    n = noise.brownian_paths(len(x), seeded()).increments(whole, x)
    size = torch.hypot(*path(torch.tensor([0.0, 1.0], dtype=torch.float64))[:2])
    return size[1] * (kept * x / size[0] + (1 - kept**2).sqrt() * n)


def strong_errors(counts, **config):
    """Return the RMS distance from the exact solution after loops of so many steps."""
    data = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 1.0)
    errors = []
    for count in counts:
        scheduler = brownian(count, **config)
        model = model_of(scheduler, data)
        x = torch.randn(1, 400, generator=seeded(7), dtype=torch.float64)
        x = scheduler.init_noise_sigma * x  # one sample, of as many problems as elements
        end = loop(scheduler, x, generator=seeded(), model=lambda x, t, m=model: m(x.T, t).T)
        errors.append((end - exact(scheduler, x)).square().mean().sqrt().item())
    return errors


@pytest.mark.parametrize("solver", DRIVEN)
@pytest.mark.parametrize(
    ("diffusion", "path"),
    few(list(zip(VANISHING, LINES, strict=True)), list(product(VANISHING, LINES))),
)
def test_more_steps_converge_to_the_exact_solution_on_the_path(solver, diffusion, path):
    """Strong order 1: four times the steps leave at most .4 of the error, and it is small."""
    coarse, fine = strong_errors((8, 32), solver=solver, diffusion=diffusion, path=path)
    assert fine < 0.4 * coarse and fine < 0.15


@pytest.mark.parametrize("solver", DRIVEN)
def test_independent_noise_does_not_converge_on_a_path(solver):
    coarse, fine = strong_errors((8, 32), solver=solver, noise="independent")
    assert fine > 0.9 * coarse > 0.5


def end_of(count, solver="predictor_corrector"):
    scheduler = brownian(count, solver=solver, diffusion="beta")
    return loop(scheduler, start(scheduler, batch=2), generator=seeded())


@pytest.fixture(scope="module")
def converged():
    return end_of(96)


@pytest.mark.parametrize(
    "solver", few([(s,) for s in (*DRIVEN, "ddim", "heun")], [(s,) for s in SOLVERS])
)
def test_more_steps_refine_the_same_image_of_a_mixture(solver, converged):
    """A field that is not linear; every solver comes to the image of the others."""
    coarse, fine = ((end_of(n, solver) - converged).square().mean().sqrt() for n in (6, 24))
    assert fine < 0.6 * coarse and fine < 0.15


def test_strong_convergence_on_brownian_paths(tmp_path):
    few = {"num_samples": 100, "reference_steps": 48, "steps": [3, 6, 12], "paths": ["linear"]}
    arguments = benchmark.Arguments(
        output_dir=str(tmp_path), diffusions=["beta"], solvers=["predictor_corrector"], **few
    )
    rows = benchmark.main(arguments)
    assert [row.noise for row in rows] == ["brownian", "independent"] * 2
    for ours, independent in (rows[:2], rows[2:]):
        assert ours.order(few["steps"]) > 0.6 > 0.3 > independent.order(few["steps"])
    with open(tmp_path / "brownian.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    text = (tmp_path / "brownian.md").read_text()
    assert "| 12 steps | order |" in text and "## mixture" in text


def test_the_table_that_is_kept_says_what_was_measured():
    folder = Path(__file__).parents[1] / "benchmarks" / "results"
    with (folder / "brownian.csv").open(newline="") as file:
        measured = list(csv.DictReader(file))
    table = [r for r in (folder / "brownian.md").read_text().splitlines() if "brownian |" in r]
    kept = [row for row in measured if row["noise"] == "brownian"]
    assert len(table) == len(kept) > 60
    for line, row in zip(table, kept, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:3] == [row["path"], row["diffusion"], row["solver"]]
        assert cells[-1] == row["order"]
        exact = row["diffusion"] not in ("constant", "flow_grpo")
        ours = row["solver"] != "euler_maruyama"
        assert float(row["order"]) > (0.8 if ours else 0.7) or not exact
