r"""The families of diffusers' schedulers: what their networks predict, on which path, fed what.

Each is a function of a scheduler's own keys, completed by its defaults, and returns ours.

References: Lipman et al., https://arxiv.org/abs/2210.02747 (flow); Ho et al.,
https://arxiv.org/abs/2006.11239 (DDPM); Karras et al., https://arxiv.org/abs/2206.00364 (EDM).
"""

import inspect
from typing import Any

import torch

from fm_diffusers.paths import Discrete

Config = dict[str, Any]


def is_continuous(config: Config) -> bool:
    """Whether Euler's network is fed log(sigma)/4; one with other predictions is fed the index."""
    kinds = config.get("timestep_type"), config.get("prediction_type")
    return kinds == ("continuous", "v_prediction")


def noise_asked_for(config: Config) -> Config:
    """Return the SDE that a configuration asks for by a setting, in our words; {} for none."""
    if config.get("stochastic_sampling"):
        return {"diffusion": "refresh", "solver": "ddim"}
    if str(config.get("algorithm_type")).startswith("sde"):
        options = {k: config[k] for k in ("solver_order", "solver_type") if k in config}
        return {"diffusion": "memoryless", "solver": "dpm_solver++", "solver_kwargs": options}
    eta = config.get("eta") or 0.0
    if not eta:
        return {}
    # of DDIM's table it is the ratio of standard deviations, of a flow that of variances
    scale = eta**2 if "beta_start" in config else eta
    return {"diffusion": "memoryless", "diffusion_kwargs": {"scale": scale}}


def _flow(config: Config) -> Config:
    inverted = config.get("invert_sigmas", False)
    kind = config.get("prediction_type", "flow_prediction")
    euler = "flow_shift" not in config and "solver_order" not in config
    if "predict_x0" in config and config.get("use_karras_sigmas"):
        return _flow_karras(config, kind)
    # where log-SNR, on which it extrapolates, is still finite
    unipc = {"first": 1 - 1e-6, "last": 1 / config.get("num_train_timesteps", 1000)}
    return {
        "path": "linear",
        "prediction_type": "velocity" if inverted else kind,
        "time_convention": "ascending" if inverted else "descending",
        "grid": "flow_match" if euler else "flow_multistep",
        "grid_kwargs": unipc if "predict_x0" in config else None,
        "shift": config.get("flow_shift") or config.get("shift") or 1.0,
    }


def _flow_karras(config: Config, kind: str) -> Config:
    """Return UniPC's flow levels: ratios spaced between those of its table, without a shift."""
    count = config.get("num_train_timesteps", 1000)
    known = {k: config[k] for k in inspect.signature(Discrete).parameters if k in config}
    ratios = torch.exp(
        -Discrete(**known).log_snr(torch.tensor([0.0, 1 - 1 / count], dtype=torch.float64))
    )
    high, low = ratios.tolist()
    high, low = config.get("sigma_max") or high, config.get("sigma_min") or low
    return {
        "path": "linear",
        "prediction_type": kind,
        "grid": "karras",
        "grid_kwargs": {"sigma_min": low, "sigma_max": high},
        "t_min": 1 / (1 + high),
        "use_karras_sigmas": False,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "shift": 1.0,
    }


def _flow_map(config: Config) -> Config:
    """Return the words of AnyFlow's, whose network is told two times."""
    return {
        "path": "linear",
        "prediction_type": "flow_prediction",
        "solver": "flow_map",
        "grid": "uniform",
        "shift": config.get("shift") or 1.0,
    }


def _table(config: Config) -> Config:
    multistep = bool({"solver_order", "predictor_order"} & set(config))
    # Euler, Heun, LMS, KDPM2; EulerAncestral by what it lacks of DDIM, DDPM and PNDM
    euler = "use_karras_sigmas" in config or not {"clip_sample", "set_alpha_to_one"} & set(config)
    heun = {"clip_sample_range", "use_karras_sigmas"} <= set(config)
    bounded = not multistep and (heun or not euler)
    last = "zero" if config.get("set_alpha_to_one", True) or euler else "sigma_min"
    last = config.get("final_sigmas_type") or last
    count = config["num_train_timesteps"]
    # UnCLIP names neither betas nor where it stops, DPMSolverSinglestep not the latter
    spacing = "leading" if "beta_start" in config and not multistep else "linspace"
    return {
        "path": "discrete",
        "prediction_type": config.get("prediction_type") or "epsilon",
        "time_convention": "log_sigma" if is_continuous(config) else "index",
        "grid": "multistep" if multistep else "euler_discrete" if euler else "ddim",
        "timestep_spacing": config.get("timestep_spacing") or spacing,
        "t_max": None if last == "zero" else 1 - 1 / count,
        "shift": 1.0,
        # those that do not read it keep what an earlier scheduler had; CogVideoX's are told to
        # clip by default, and never do
        "clip_sample": bool(
            config.get("clip_sample") and bounded and "snr_shift_scale" not in config
        ),
    }


def _edm(config: Config) -> Config:
    std, kind = config.get("sigma_data") or 1.0, config.get("prediction_type", "epsilon")
    if std != 1 and kind == "v_prediction":
        raise ValueError(
            f"a v_prediction of data with sigma_data={std} is not among our predictions: wrap the "
            'network to return minus its output and pass prediction_type="epsilon"'
        )
    # CosineDPMSolver has several slopes like EDMDPMSolver, but not its choice of algorithms
    angle = "solver_order" in config and "algorithm_type" not in config
    continuous = not config.get("sigma_data")
    low, high = config.get("sigma_min") or 0.002, config.get("sigma_max") or 80.0
    rho = {"rho": config.get("rho") or 7.0}
    equal = config.get("sigma_schedule") == "exponential" or config.get("use_exponential_sigmas")
    grid = "log_snr" if equal else "karras"
    return {
        "path": "cosine",
        "path_kwargs": {"data_std": std},
        "prediction_type": kind if continuous or kind != "epsilon" else "edm",
        "sampling_path": "noise_level",
        "sampling_path_kwargs": {"sigma_max": high},
        "time_convention": "angle" if angle else "log_sigma",
        "grid": grid,
        "grid_kwargs": {"sigma_min": low, "sigma_max": high} | (rho if grid == "karras" else {}),
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "shift": 1.0,
    }


#: By the name of the family.
FAMILIES = {"flow": _flow, "flow_map": _flow_map, "table": _table, "edm": _edm}
