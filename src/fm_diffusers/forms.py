r"""What the entries of the tables look like, to be shown to whoever writes another.

Users add rows by assignment, so that a row of another form is found where it is used, far from
where it was written. Each form is a complete example, and what can be wrong with an entry or with
what it makes; `tables` asks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def _nothing(*args: Any) -> str:
    return ""


class Form(NamedTuple):
    """The form of the entries of a table; the functions return what is wrong, or nothing.

    Attributes:
        example: a complete entry, as code.
        of_entry: what is wrong with an entry.
        of_made: what is wrong with what it makes, a function of that and of the arguments.
    """

    example: str
    of_entry: Callable[[Any], str] = _nothing
    of_made: Callable[[Any, dict[str, Any]], str] = _nothing


def _lacks(*names: str) -> Callable[..., str]:
    def fault(made: Any, *given: Any) -> str:
        missing = [name for name in names if not callable(getattr(made, name, None))]
        return f"a {type(made).__name__} has no {', '.join(missing)}" if missing else ""

    return fault


def _no_maker(entry: Any) -> str:
    return "" if callable(entry) else f"a {type(entry).__name__} cannot be called"


def _no_prediction(entry: Any) -> str:
    pair = isinstance(entry, tuple) and len(entry) == 2 and all(map(callable, entry))
    return "" if pair else f"it must be two functions, got a {type(entry).__name__}"


def _no_vector(made: Any, length: int, what: str) -> str:
    if isinstance(made, Tensor) and made.shape == (length,) and made.is_floating_point():
        return ""
    shape = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else ""
    return f"it must return {length} {what}, got {shape or type(made).__name__}"


def _no_grid(made: Any, given: dict[str, Any]) -> str:
    return _no_vector(made, given["n"] + 1, "times for n steps, as a floating tensor")


def _no_times(made: Any, given: dict[str, Any]) -> str:
    fault = _no_vector(made, given["n"], "times, as a floating tensor")
    # elsewhere a look at the values would wait for the device
    if not fault and made.device.type == "cpu" and not ((made >= 0) & (made <= 1)).all():
        ends = f"{made.min().item():g} to {made.max().item():g}"
        return f"times must lie in [0, 1], 0 is noise and 1 is data, got {ends}"
    return fault


def _no_permutation(made: Any, given: dict[str, Any]) -> str:
    n = given["n"]
    if not isinstance(made, Tensor) or made.dtype != torch.long or made.shape != (n,):
        shape = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else ""
        return f"it must return {n} indices, got {shape or type(made).__name__}"
    once = torch.equal(made.cpu().sort().values, torch.arange(n))
    return "" if once else "it must return every index from 0 to n - 1 once"


def _no_weighting(made: Any, given: dict[str, Any]) -> str:
    if isinstance(getattr(made, "kinds", None), tuple):
        return _lacks("loss")(made)
    return f"it must return a Weighting of a tuple of kinds, got a {type(made).__name__}"


#: By what the tables hold, in the words of their errors.
FORMS: dict[str, Form] = {
    "path": Form(
        """class Square(GaussianPath):  # alpha = t^2, beta = 1 - t^2, and their derivatives
    def coefficients(self, t):
        return Coefficients(t**2, 1 - t**2, 2 * t, -2 * t)

    def time(self, log_snr):  # the time at which log(alpha/beta) has this value
        return torch.sigmoid(log_snr).sqrt()

PATHS["square"] = Square""",
        _no_maker,
        _lacks("coefficients", "time", "log_snr", "tangent"),
    ),
    "prediction type": Form(
        """def row(path, t):  # (a, b, w): what is predicted is q with w f q = a z + b eps
    one = torch.ones_like(t)
    return one, -one, one

def factor(path, t):  # f
    return torch.full_like(t, 2.0)

PREDICTIONS["mine"] = (row, factor)""",
        _no_prediction,
    ),
    "solver": Form(
        """@dataclass(frozen=True)
class MyHeun(RungeKutta):  # made with path, prediction, diffusion and model_path
    tableau: Tableau = HEUN

SOLVERS["my_heun"] = MyHeun""",
        _no_maker,
        _lacks("plan", "exists", "convert"),
    ),
    "grid": Form(
        """def dense(n, path, t_min=0.0, t_max=1.0, power=2.0):  # n + 1 ascending times
    left = torch.linspace(1, 0, n + 1, dtype=torch.float64) ** power
    return t_max + (t_min - t_max) * left

GRIDS["dense"] = dense""",
        _no_maker,
        _no_grid,
    ),
    "time_sampler": Form(
        """def late(n, generator, device, power=0.5):  # n times in [0, 1], 0 is noise
    return torch.rand(n, generator=generator, device=device) ** power

TIME_SAMPLERS["late"] = late""",
        _no_maker,
        _no_times,
    ),
    "coupling": Form(
        """def nearest(n, cost, generator):  # noise i goes to data point j; cost() is (n, n)
    rows, taken = cost().clone(), []
    for row in rows:
        taken.append(int(row.argmin()))
        rows[:, taken[-1]] = torch.inf
    return torch.tensor(taken)

COUPLINGS["nearest"] = nearest""",
        _no_maker,
        _no_permutation,
    ),
    "weighting": Form(
        """def late(power=2.0):  # a loss of the squared errors of these kinds, of degree one
    return Weighting(("velocity",), lambda path, t, velocity: t**power * velocity)

WEIGHTINGS["late"] = late""",
        _no_maker,
        _no_weighting,
    ),
    "time_convention": Form(
        """TIME_CONVENTIONS["percent"] = Convention(  # N is num_train_timesteps
    timestep=lambda path, N, t: 100 * (1 - t),  # what the network is fed at the time t
    time=lambda path, N, timestep: 1 - timestep / 100,  # its inverse
    sigma=lambda path, N, t: 1 - t,
    time_of_sigma=lambda path, N, sigma: 1 - sigma,
)""",
        _lacks("timestep", "time", "sigma", "time_of_sigma"),
    ),
}


def misfit(kind: str, name: str, fault: str) -> ValueError:
    """Return the error for an entry of another form than those of its table, which shows one."""
    return ValueError(
        f"the {kind} {name!r} has not the form of its table: {fault}; write it as\n\n"
        f"{FORMS[kind].example}"
    )
