r"""What the keys of diffusers' configurations mean here.

A configuration says three things: what the network was trained for, where the steps stop, and how
they are taken. The first two are kept (`families` reads them, or the key is ours by the same
name). The third becomes ours, with this exception: a setting that makes of their sampler an SDE,
or asks for noise or steps of its own, is kept as well or refused by name (`SETTINGS`).

Every key of every scheduler of diffusers is of one of these kinds:

- ours by the same name, an argument of `GaussianFlowScheduler`;
- `READ`, by which `families` knows the family, its path and its grid;
- `SOLVER_OPTIONS`, parameters of a solver that ours replaces;
- `SETTINGS`, kept or refused;
- a key of a scheduler that is refused as a whole (`REFUSED`).

Any other gives a warning by its name.
"""

import math
from typing import Any, NamedTuple


class Refused(NamedTuple):
    """A scheduler whose network or steps mean something else."""

    keys: frozenset[str]
    reason: str


def _refused(keys: str, reason: str) -> Refused:
    return Refused(frozenset(keys.split()), reason)


_CONSISTENCY = "its network is a consistency model, which answers with data at every noise level"

#: Schedulers that cannot be replaced, by a part of their class's name: the keys or the prediction
#: type by which their configuration is known without the name, and why.
REFUSED: dict[str, Refused] = {
    "LCM": _refused("original_inference_steps timestep_scaling upscale_mode", _CONSISTENCY),
    "TCD": _refused("", _CONSISTENCY),  # the keys of LCM
    "SCM": _refused("trigflow", "it is a consistency model in trigonometric time"),
    "CMStochastic": _refused("clip_denoised", _CONSISTENCY),
    "ConsistencyDecoder": _refused("", _CONSISTENCY),
    "MiniMaxH3": _refused("", "its network predicts z - eps and is fed 1 - sigma"),
    "Helios": _refused("stages stage_range", "its path is a pyramid of sizes"),
    "Piflow": _refused("num_policy_substeps", "its network predicts a policy"),
    "ScoreSde": _refused("sampling_eps", "its network is fed a time of its own"),
    "KarrasVe": _refused("s_churn", "its network is fed sigma itself"),
    "Wuerstchen": _refused("scaler", "its network is fed a ratio from 0 to 1"),
    "IPNDM": _refused("", "its table is none of DDPM's"),
    "VQDiffusion": _refused("num_vec_classes", "its data is discrete"),
}

#: Sets of keys that are all of the configuration of two schedulers or more of which one is
#: refused, or of one that shares them with shortened configurations: without the name of the
#: class such a configuration tells no family.
AMBIGUOUS: tuple[frozenset[str], ...] = tuple(
    frozenset(keys.split())
    for keys in (
        "shift",  # MiniMaxH3
        "num_train_timesteps shift",  # FlowMatchHeun and FlowMap
        "num_train_timesteps trained_betas",  # IPNDM
        "num_train_timesteps sigma_data",  # ConsistencyDecoder
    )
)

#: Keys that `families` reads, and what they become.
READ: dict[str, str] = {
    "flow_shift": "shift",
    "use_flow_sigmas": "path",
    "set_alpha_to_one": "t_max",
    "final_sigmas_type": "t_max",
    "sigma_data": "path_kwargs",
    "sigma_schedule": "grid",
    "rho": "grid_kwargs",
    "timestep_type": "time_convention",
    "predict_x0": "grid_kwargs",
}

#: Parameters of a deterministic solver, which ours replaces.
SOLVER_OPTIONS: dict[str, str] = {
    "solver_order": "its order",
    "predictor_order": "its order",
    "corrector_order": "its corrector's order",
    "solver_type": "its form",
    "lower_order_final": "its last steps",
    "euler_at_final": "its last step",
    "disable_corrector": "where its corrector rests",
    "solver_p": "its predictor",
    "skip_prk_steps": "its first steps",
    "noise_sampler_seed": "the seed of its noise",
}


class Setting(NamedTuple):
    """A key that asks for noise or steps of its own.

    Attributes:
        neutral: its value when it does not.
        decides: our argument that says the same; given, the setting no longer counts.
        reason: why other values are refused; None where they are kept.
    """

    neutral: Any
    decides: str
    reason: str | None = None


#: What is kept or refused; a neutral value asks for nothing.
SETTINGS: dict[str, Setting] = {
    "stochastic_sampling": Setting(False, "diffusion"),
    "algorithm_type": Setting("dpmsolver++", "diffusion"),
    "eta": Setting(0.0, "diffusion"),
    "s_noise": Setting(1.0, "diffusion", "noise of another size keeps no distribution"),
    "tau_func": Setting(None, "diffusion", "a function cannot be read"),
    "use_lu_lambdas": Setting(False, "grid", "its spacing is not among ours"),
    "interpolation_type": Setting("linear", "grid", "its noise levels are not at its timesteps"),
    "lambda_min_clipped": Setting(-math.inf, "grid", "its first steps are left out"),
}

#: The same of flow and EDM schedulers, whose last step then stands still.
NO_STOP: dict[str, Setting] = {
    "final_sigmas_type": Setting("zero", "t_max", "its last step goes nowhere or to another table")
}

#: Defaults of the classes that diffusers has only where torchsde is installed.
_TABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "trained_betas": None,
}
TORCHSDE: dict[str, dict[str, Any]] = {
    "CosineDPMSolverMultistepScheduler": {
        "sigma_min": 0.3,
        "sigma_max": 500,
        "sigma_data": 1.0,
        "sigma_schedule": "exponential",
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "prediction_type": "v_prediction",
        "rho": 7.0,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    },
    "DPMSolverSDEScheduler": _TABLE
    | {
        "prediction_type": "epsilon",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "noise_sampler_seed": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    },
}

#: Every key of diffusers' that has a meaning here, or none.
THEIRS = frozenset({*READ, *SOLVER_OPTIONS, *SETTINGS})
