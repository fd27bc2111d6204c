"""Weights fitted to Gaussian data: what they are fitted to, and what stays as it was."""

import numpy as np
import pytest
import torch
from covers import covering
from oracles import moments, slope

from fm_diffusers.diffusions import DIFFUSIONS, get_diffusion, windowed
from fm_diffusers.grids import GRIDS, default_parameters
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.solvers import SOLVERS, fitting

#: Of data; none of those that weights are fitted to.
WIDTHS = (0.07, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0)


def solver(diffusion="memoryless", **options):
    return SOLVERS["predictor_corrector"](Linear(), diffusion=get_diffusion(diffusion), **options)


def grid(n, end=1.0):
    return GRIDS["logistic"](n, Linear(), t_max=end, **default_parameters(n, noisy=True))


class Planned:
    """A solver whose plan is made once, as a loop that begins on the way takes its steps."""

    def __init__(self, solver, times, begin):
        self.path, self.prediction, self.model_path = solver.path, solver.prediction, None
        self.rescaling, self.model_time = solver.rescaling, solver.model_time
        self.steps = solver.plan(times)[begin:]

    def plan(self, times):
        return self.steps


def bias(solver, times, widths=WIDTHS, begin=0):
    """Return the exact bias of the standard deviation, by an oracle that knows of no fit."""
    end, planned = solver.path(times[-1]), Planned(solver, times, begin)
    stds = [(end.alpha**2 * s**2 + end.beta**2).sqrt().item() for s in widths]
    pairs = zip(widths, stds, strict=True)
    return np.array([moments(planned, times, mean=0.0, std=s)[1] / std - 1 for s, std in pairs])


def parts(solver, times):
    """Return what `fitted` hands to `_bias` where nothing is moved."""
    landing = solver.landing(times[:-1], times[1:])
    factor, rows = solver._rows(times[:-1], landing)
    weights = rows[-1].clone()
    weights[0] = 0
    weights[0, :1] = rows[0][0]
    at = solver.path(times)
    arrays = (at.alpha, at.beta, landing.std, factor, weights)
    return [values.numpy() for values in arrays]


@pytest.mark.parametrize("end", [0.9, 1.0])
@pytest.mark.parametrize("diffusion", ["memoryless", "flow_grpo", "constant"])
def test_the_bias_that_is_fitted_is_that_of_the_run_and_its_derivatives_are(diffusion, end):
    plain = solver(diffusion, corrector=False, lower_order_final=False, fitted=False)
    times = grid(9, end)
    run = parts(plain, times)
    found, slopes = fitting._bias(*run, np.zeros(9))
    assert found == pytest.approx(bias(plain, times, fitting.WIDTHS), rel=1e-9, abs=1e-12)
    for n in range(9):
        step = np.zeros(9)
        step[n] = 1e-6
        ahead, behind = (fitting._bias(*run, sign * step)[0] for sign in (1, -1))
        assert (ahead - behind) / 2e-6 == pytest.approx(slopes[:, n], rel=1e-5, abs=1e-7)


#: The largest bias at any of the widths, by the number of steps.
LARGEST = {7: 0.05, 8: 0.042, 16: 0.006, 32: 0.0015, 64: 0.0006}


@pytest.mark.parametrize(("diffusion", "n"), covering(DIFFUSIONS, LARGEST))
@pytest.mark.filterwarnings("ignore:the diffusion .* asks for steps of K")
def test_data_of_every_width_is_sampled_with_little_bias(diffusion, n):
    assert np.abs(bias(solver(diffusion), grid(n))).max() < LARGEST[n]


@pytest.mark.parametrize("start", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("n", [8, 16, 32])
def test_a_loop_that_begins_on_the_way_is_sampled_with_less_bias(n, start):
    """The weights are those of the whole run: of `strength` in image-to-image."""
    pair = (solver(fitted=fit) for fit in (False, None))
    before, after = (np.abs(bias(s, grid(n), WIDTHS[1:6], int(start * n))) for s in pair)
    assert after.max() < 0.6 * before.max()


def test_moves_shrink_with_the_steps_and_so_the_weak_order_stays():
    moves = []
    for n in (80, 160, 320, 640):
        times = torch.linspace(0, 0.9, n + 1, dtype=torch.float64)
        pairs = zip(solver().plan(times), solver(fitted=False).plan(times), strict=True)
        rows = [(ours.row(3), plain.row(3)) for ours, plain in pairs]
        moves.append(max(abs(a[1] - b[1]) / sum(b[1:]) for a, b in rows))
    assert moves[0] < 0.3 and slope(moves) > 0.85
    times = [torch.linspace(0, 0.9, n + 1, dtype=torch.float64) for n in (80, 160, 320)]
    assert slope([np.abs(bias(solver(), t)).max() for t in times]) > 1.9


def test_only_noised_steps_and_those_behind_them_change():
    window = windowed(get_diffusion("memoryless"), [(0.3, 0.7)])
    ours, plain = (
        SOLVERS["predictor_corrector"](Linear(), diffusion=window, fitted=fit).plan(grid(12))
        for fit in (None, False)
    )
    noised = [step.std > 0 for step in plain]
    behind = [False, *noised[:-1]]
    assert [a.rows != b.rows for a, b in zip(ours, plain, strict=True)] == [
        a or b for a, b in zip(noised, behind, strict=True)
    ]
    assert any(noised) and not all(noised)
    assert all(a.rows[0] == b.rows[0] for a, b in zip(ours, plain, strict=True))


def test_up_to_six_steps_and_other_methods_nothing_is_fitted():
    assert solver().plan(grid(6)) == solver(fitted=False).plan(grid(6))
    assert solver().plan(grid(7)) != solver(fitted=False).plan(grid(7))
    assert solver(fitted=True).plan(grid(6)) != solver(fitted=False).plan(grid(6))
    # a step with one slope has nothing to move
    assert solver(solver_order=1).plan(grid(8)) == solver(solver_order=1, fitted=False).plan(
        grid(8)
    )
    ode = SOLVERS["predictor_corrector"](Linear(), fitted=True)
    assert ode.plan(grid(8)) == SOLVERS["predictor_corrector"](Linear()).plan(grid(8))
    for name in ("dpm_solver++", "unipc", "res_multistep", "exponential_multistep"):
        assert SOLVERS[name](Linear()).fitted is False
    with pytest.raises(ValueError, match="fitted must be True, False or None"):
        solver(fitted="gaussian")


@pytest.mark.parametrize("n", [8, 32, 250])
def test_on_grids_of_very_long_steps_nothing_grows(n):
    """Equal steps from a noise level of 80 come to the data in one step from a hundredth of it."""
    times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    pair = [
        SOLVERS["predictor_corrector"](
            PATHS["noise_level"](), diffusion=get_diffusion("memoryless"), fitted=fit
        )
        for fit in (False, True)
    ]
    before, after = (np.abs(bias(s, times)) for s in pair)
    assert after.max() <= before.max() < 1


def test_more_slopes_are_fitted_too():
    plain, ours = (solver("beta", solver_order=3, fitted=fit) for fit in (False, True))
    before, after = (np.abs(bias(s, grid(16))).max() for s in (plain, ours))
    assert after < 0.2 * before
