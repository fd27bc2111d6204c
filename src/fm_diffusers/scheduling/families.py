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
lacks them; of a class that is known, only what it reads counts. Where the family cannot be told,
an error says what to pass; no sign is guessed. The other keys, in the table `keys`, are kept,
refused or unknown.
"""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from fm_diffusers.paths import Discrete
from fm_diffusers.scheduling.keys import (
    AMBIGUOUS,
    NO_STOP,
    REFUSED,
    SETTINGS,
    THEIRS,
    TORCHSDE,
    Setting,
)
from fm_diffusers.scheduling.overrides import check_keywords, warn_of_unknown, without_leftovers

Config = dict[str, Any]

#: Keys by which a family is known.
FLOW_KEYS = {"shift", "base_shift"}
TABLE_KEYS = {"beta_start", "beta_end", "beta_schedule"}

#: What a user may say about another scheduler's configuration in its own words, beside `THEIRS`.
HINTS = {"prediction_type", "beta_schedule", "invert_sigmas"}


def translate(
    config: Mapping[str, Any], own: set[str], unused: bool = False, **given: Any
) -> Config:
    """Return a configuration of any of diffusers' schedulers in our words.

    Args:
        config: of a scheduler of diffusers, in memory or from JSON; ours stays as it is.
        own: the names of our arguments.
        unused: whether keywords without effect are handed back to the user, and so are no error.
        **given: what the user says instead, which may tell the family. What depended on the value
            that it replaces is left out; see `LEFTOVERS`.

    Raises:
        ValueError: if a keyword is none of ours, the family is unknown, its networks are not fed
            and read as those here, or a setting of theirs cannot be kept.
    """
    ours = "path" in config or not config or config.get("_class_name") == "GaussianFlowScheduler"
    if not unused:
        check_keywords(given, own if ours else own | THEIRS)
    config = _ours(config, own, given) if ours else _from_theirs(config, own, given)
    known = own.union(THEIRS, _defaults(config), *(refused.keys for refused in REFUSED.values()))
    warn_of_unknown(config, known)
    config.pop("solver_p", None)  # an object, which no file holds
    return without_leftovers(config, given)


def _ours(config: Mapping[str, Any], own: set[str], given: Config) -> Config:
    """Return our configuration, which perhaps comes by way of another scheduler.

    What that one has by default says nothing of ours, what it was told to do must agree with it.
    """
    defaults = _defaults(config)
    other = {*config.get("_use_default_values", []), "_use_default_values"}
    other |= {k for k, v in config.items() if k not in own and k in defaults and v == defaults[k]}
    config = _released({k: v for k, v in config.items() if k not in other}, SETTINGS, given)
    _check_settings(config, SETTINGS)
    noise = _noise(config).get("diffusion")
    if noise is not None and config.get("diffusion") != noise:
        asking = {k: v for k, v in config.items() if k in SETTINGS and v != SETTINGS[k].neutral}
        raise ValueError(
            f"{asking} asks for diffusion={noise!r}, and this configuration has diffusion="
            f"{config.get('diffusion')!r}: pass diffusion"
        )
    return config


def _from_theirs(config: Mapping[str, Any], own: set[str], given: Config) -> Config:
    """Return a configuration of diffusers' in our words."""
    name = str(config.get("_class_name") or "")
    defaults = _defaults(config)
    config = defaults | {k: v for k, v in config.items() if not k.startswith("_")}
    for part, (keys, reason) in REFUSED.items():
        if part in name or keys & {*config, str(config.get("prediction_type"))}:
            raise ValueError(
                f"a {part} scheduler cannot be replaced: {reason}. If the network was trained for "
                "another scheduler, pass the configuration of that one"
            )
    config |= {key: given[key] for key in (HINTS | THEIRS) & set(given)}
    if "Inverse" in name:
        warnings.warn(
            f"{name} goes from data to noise, this scheduler samples from noise to data",
            stacklevel=4,
        )
    if defaults:  # by our names only what the class itself reads
        kept = {*defaults, "sigma_min", "sigma_max", *HINTS & set(given)}
        config = {k: v for k, v in config.items() if k in kept or k not in own}
    read = {k: v for k, v in config.items() if not defaults or k in defaults or k in given}
    family = _family(read, name)
    if family is None and not {"path", "prediction_type"} <= set(given):
        raise ValueError(_unknown(name, config))
    settings = SETTINGS if family in (None, "table") else SETTINGS | NO_STOP
    config, read = _released(config, settings, given), _released(read, settings, given)
    _check_settings(read, settings)
    found = _FAMILIES[family](read) if family else {}
    if "grid" in given:  # their levels began there
        found.pop("t_min", None)
    return config | found | _noise(read)


def _unknown(name: str, config: Config) -> str:
    return (
        f"whether the network of this {name or 'scheduler'} is a flow or a diffusion model "
        f"cannot be told from {sorted(config)}: pass path and prediction_type, for diffusers' "
        'flow models path="linear", prediction_type="flow_prediction"; for a DDPM table '
        'path="discrete", prediction_type="epsilon", time_convention="index", grid="ddim" and '
        "beta_schedule"
    )


def _family(config: Config, name: str) -> str | None:
    """Return which of the families a configuration belongs to, None if that cannot be told."""
    if not name and frozenset(config) in AMBIGUOUS:
        return None
    kind = config.get("prediction_type")
    flow = bool(FLOW_KEYS & set(config)) and "num_train_timesteps" in config
    flow = flow or "FlowMatch" in name or {"eta", "s_noise"} <= set(config)
    table = bool(TABLE_KEYS & set(config)) or config.get("trained_betas") is not None
    if config.get("use_flow_sigmas") or kind == "flow_prediction":
        return "flow"
    if _is_continuous(config) and config.get("sigma_min") and config.get("sigma_max"):
        respaced = config.get("use_karras_sigmas") or config.get("use_exponential_sigmas")
        return "edm" if respaced else "table"
    if flow and table and name:
        return "flow" if "FlowMatch" in name else "table"
    if flow != table:
        return "flow" if flow else "table"
    if config.get("sigma_data") and not flow:
        return "edm"
    return None


def _is_continuous(config: Config) -> bool:
    """Whether Euler's network is fed log(sigma)/4; one with other predictions is fed the index."""
    kinds = config.get("timestep_type"), config.get("prediction_type")
    return kinds == ("continuous", "v_prediction")


def _defaults(config: Mapping[str, Any]) -> Config:
    """Return the values that a scheduler of diffusers has by default; none of another class."""
    name = str(config.get("_class_name"))
    found = getattr(diffusers, name, None)
    if isinstance(found, type) and issubclass(found, SchedulerMixin):
        parameters = list(inspect.signature(found.__init__).parameters.values())[1:]
        named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        return {p.name: None if p.default is p.empty else p.default for p in named}
    return TORCHSDE.get(name, {})


def _released(config: Config, settings: dict[str, Setting], given: Config) -> Config:
    """Return the configuration without settings that the user decides by an argument of ours."""
    neutral = {k: s.neutral for k, s in settings.items() if s.decides in given and k in config}
    return config | neutral


def _check_settings(config: Config, settings: dict[str, Setting]) -> None:
    """Raise for settings that cannot be kept."""
    for name, (neutral, decides, reason) in settings.items():
        if name in config and config[name] != neutral and reason is not None:
            raise ValueError(
                f"{name}={config[name]!r} of this scheduler cannot be kept: {reason}. Pass "
                f"{name}={neutral!r} or our {decides} instead"
            )


# --- the families --------------------------------------------------------------------------------


def _noise(config: Config) -> Config:
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
        "time_convention": "log_sigma" if _is_continuous(config) else "index",
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


_FAMILIES = {"flow": _flow, "table": _table, "edm": _edm}
