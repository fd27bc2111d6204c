r"""Configurations of diffusers' schedulers in the words of `GaussianFlowScheduler`.

What a network predicts, on which path and for which time, is not written in a configuration as
such: it follows from the family of the scheduler that the network was trained for.

- **flow** (`FlowMatchEuler`, `FlowMatchHeun`; `UniPC`, `DPMSolver`, `DEIS` with
  `use_flow_sigmas`): the linear path, `eps - z` fed `1000 sigma`. With `invert_sigmas` (Mochi)
  `z - eps` fed `1000 t`.
- **DDPM** (`DDPM`, `DDIM`, `PNDM`, `Euler`, `DPMSolver`, `UniPC`, ...): a table of betas, and
  `prediction_type`.
- **EDM** (`EDMEuler`, `EDMDPMSolverMultistep`; `EulerDiscrete` with continuous timesteps): samples
  `z + sigma eps`, of which the network sees `x / sqrt(sigma^2 + sigma_data^2)`, fed
  `log(sigma)/4`. (`CosineDPMSolver`, Stable Audio's: fed `arctan(sigma) 2/pi`.)

Values that the source had by default are kept, from `_class_name` where the configuration itself
lacks them. Where the family cannot be told, an error says what to pass; no sign is guessed.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

Config = dict[str, Any]

#: Schedulers whose networks or steps mean something else, by a part of their class's name, with
#: the key or prediction type by which their configuration is known in memory, and what differs.
SPECIAL: dict[str, tuple[str | None, str]] = {
    "MiniMaxH3": (None, "its network predicts z - eps and is fed 1 - sigma"),
    "FlowMap": (None, "its network maps between two times"),
    "SCM": ("trigflow", "it is a consistency model in trigonometric time"),
    "CMStochastic": ("clip_denoised", "it is a consistency model"),
    "Helios": ("stages", "its path is a pyramid of sizes"),
    "Piflow": ("num_policy_substeps", "its network predicts a policy"),
    "VQDiffusion": ("num_vec_classes", "its data is discrete"),
    "ScoreSde": ("sampling_eps", "its network is fed a time of its own"),
    "KarrasVe": ("s_churn", "its network is fed sigma itself"),
    "Wuerstchen": ("scaler", "its network is fed a ratio from 0 to 1"),
    "IPNDM": (None, "its table is none of DDPM's"),
}

#: The defaults of a class that diffusers has only where torchsde is installed.
COSINE = {
    "sigma_min": 0.3,
    "sigma_max": 500.0,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "prediction_type": "v_prediction",
    "rho": 7.0,
}

#: Keys by which a family is known.
FLOW_KEYS = {"shift", "base_shift"}
TABLE_KEYS = {"beta_start", "beta_end", "beta_schedule"}

#: What a user may say about another scheduler's configuration in its own words.
HINTS = {"use_flow_sigmas", "prediction_type", "flow_shift", "beta_schedule", "invert_sigmas"}


def translate(config: Mapping[str, Any], **given: Any) -> Config:
    """Return a configuration of any of diffusers' schedulers in our words.

    Args:
        config: of a scheduler of diffusers, in memory or from JSON; ours is returned as it is.
        **given: what the user says instead, which may tell the family.

    Raises:
        ValueError: if the family is unknown, or its networks are not fed and read as those here.
    """
    if "path" in config or not config:
        # ours, perhaps by way of another scheduler, whose own defaults say nothing of ours
        other = {*config.get("_use_default_values", []), "_use_default_values"}
        return {name: value for name, value in config.items() if name not in other}
    config = _complete(config)
    config |= {name: given[name] for name in HINTS & set(given)}
    name = config.pop("_class_name", None) or ""
    config.pop("_diffusers_version", None)
    for special, (key, reason) in SPECIAL.items():
        if special in name or key in {*config, str(config.get("prediction_type"))}:
            raise ValueError(f"a {special} scheduler cannot be replaced: {reason}")
    family = _family(config, name)
    if family is None and not {"path", "prediction_type"} <= set(given):
        raise ValueError(
            f"whether the network of this {name or 'scheduler'} is a flow or a diffusion model "
            f"cannot be told from {sorted(config)}: pass path and prediction_type, for diffusers' "
            'flow models path="linear", prediction_type="flow_prediction"; for a DDPM table '
            'path="discrete", prediction_type="epsilon", time_convention="index", grid="ddim" and '
            "beta_schedule"
        )
    return config | _FAMILIES[family](config) if family else config


def _family(config: Config, name: str) -> str | None:
    """Return which of the families a configuration belongs to, None if that cannot be told."""
    kind = config.get("prediction_type")
    # a shift alone is all that MiniMaxH3, whose network has the other sign, is configured by
    flow = bool(FLOW_KEYS & set(config)) and "num_train_timesteps" in config
    flow = flow or "FlowMatch" in name or "EulerAncestralRF" in name
    table = bool(TABLE_KEYS & set(config)) or config.get("trained_betas") is not None
    if config.get("use_flow_sigmas") or kind == "flow_prediction":
        return "flow"
    if config.get("timestep_type") == "continuous":
        return "edm"
    if flow and table and name:
        return "flow" if "FlowMatch" in name else "table"
    if flow != table:
        return "flow" if flow else "table"
    if config.get("sigma_data") and not flow:
        return "edm"
    return None


def _complete(config: Mapping[str, Any]) -> Config:
    """Return the configuration with the values that its scheduler has by default."""
    found = getattr(diffusers, str(config.get("_class_name")), None)
    defaults = COSINE if "CosineDPM" in str(config.get("_class_name")) else {}
    if isinstance(found, type) and issubclass(found, SchedulerMixin):
        parameters = inspect.signature(found.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return defaults | {k: v for k, v in config.items() if k != "_use_default_values"}


def _flow(config: Config) -> Config:
    inverted = config.get("invert_sigmas", False)
    kind = config.get("prediction_type", "flow_prediction")
    euler = "flow_shift" not in config and "solver_order" not in config
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


def _table(config: Config) -> Config:
    multistep = bool({"solver_order", "predictor_order"} & set(config))
    # Euler, Heun, LMS, KDPM2; EulerAncestral by what it lacks of DDIM, DDPM and PNDM
    euler = "use_karras_sigmas" in config or not {"clip_sample", "set_alpha_to_one"} & set(config)
    last = "zero" if config.get("set_alpha_to_one", True) or euler else "sigma_min"
    last = config.get("final_sigmas_type") or last
    count = config["num_train_timesteps"]
    # UnCLIP's configuration names neither betas nor where it stops
    spacing = "leading" if "beta_start" in config else "linspace"
    return {
        "path": "discrete",
        "prediction_type": config.get("prediction_type") or "epsilon",
        "time_convention": "index",
        "grid": "multistep" if multistep else "euler_discrete" if euler else "ddim",
        "timestep_spacing": config.get("timestep_spacing") or spacing,
        "t_max": None if last == "zero" else 1 - 1 / count,
        "shift": 1.0,
        # CogVideoX's schedulers are told to clip by default, and never do
        "clip_sample": config.get("clip_sample", False) and "snr_shift_scale" not in config,
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
    grid = "log_snr" if config.get("sigma_schedule") == "exponential" else "karras"
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


_FAMILIES = {"flow": _flow, "table": _table, "edm": _edm}
