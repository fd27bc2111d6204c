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
import reprlib
import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from fm_diffusers.scheduling.families import FAMILIES, Config, is_continuous, noise_asked_for
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

#: Keys by which a family is known.
FLOW_KEYS = {"shift", "base_shift"}
TABLE_KEYS = {"beta_start", "beta_end", "beta_schedule"}

#: Kinds of values that JSON has, the narrower first.
KINDS: dict[str, Any] = {
    "True or False": bool,
    "a number": Real,
    "a text": str,
    "a list": list | tuple,
    "a dictionary": Mapping,
}

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
    check_class(config)
    ours = "path" in config or not config or config.get("_class_name") == "GaussianFlowScheduler"
    if not unused:
        check_keywords(given, own if ours else own | THEIRS)
    try:
        config = _ours(config, own, given) if ours else _from_theirs(config, own, given)
    except (TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"the configuration has a value of the wrong kind or size, {error}: write it anew by "
            "save_pretrained, or leave that value out"
        ) from error
    known = own.union(THEIRS, _defaults(config), *(refused.keys for refused in REFUSED.values()))
    warn_of_unknown(config, known)
    config.pop("solver_p", None)  # an object, which no file holds
    return without_leftovers(config, given)


def check_class(config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for a configuration that is that of no scheduler."""
    name, unset = config.get("_class_name"), config.get("_use_default_values", [])
    if name is not None and not isinstance(name, str):
        raise ValueError(
            f"_class_name must be the name of a scheduler, got {name!r}: leave it out, and pass "
            "path and prediction_type"
        )
    found = getattr(diffusers, name, None) if name and name.isidentifier() else None
    if found is not None and not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(
            f"_class_name must be the name of a scheduler, got {name!r}, which diffusers has for "
            "something else: pass the configuration of a scheduler"
        )
    if not isinstance(unset, list | tuple) or not all(isinstance(name, str) for name in unset):
        raise ValueError(
            f"_use_default_values must be a list of names, got {unset!r}: leave it out"
        )


def check_kinds(config: Mapping[str, Any], defaults: Config) -> None:
    """Raise a `ValueError` for values of another kind than those that a class has by default."""
    for name in sorted(set(config) & set(defaults)):
        value, default = config[name], defaults[name]
        if None not in (_kind(value), _kind(default)) and _kind(value) != _kind(default):
            raise ValueError(
                f"{name} of a {config.get('_class_name')} must be {_kind(default)}, as "
                f"{default!r} is, got {reprlib.repr(value)}: leave it out for that"
            )


def _kind(value: Any) -> str | None:
    """Return the kind of a value in words; None for what may stand for any."""
    return next((words for words, types in KINDS.items() if isinstance(value, types)), None)


def _ours(config: Mapping[str, Any], own: set[str], given: Config) -> Config:
    """Return our configuration, which perhaps comes by way of another scheduler.

    What that one has by default says nothing of ours, what it was told to do must agree with it.
    """
    defaults = _defaults(config)
    other = {*config.get("_use_default_values", []), "_use_default_values"}
    other |= {k for k, v in config.items() if k not in own and k in defaults and v == defaults[k]}
    config = _released({k: v for k, v in config.items() if k not in other}, SETTINGS, given)
    _check_settings(config, SETTINGS)
    noise = noise_asked_for(config).get("diffusion")
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
    check_kinds(config, defaults)
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
            f"{name} goes from data to noise, this scheduler samples from noise to data: take "
            "the pipeline's invert for the other way",
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
    found = FAMILIES[family](read) if family else {}
    if "grid" in given:  # their levels began there
        found.pop("t_min", None)
    return config | found | noise_asked_for(read)


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
    if "FlowMap" in name:
        return "flow_map"
    kind = config.get("prediction_type")
    flow = bool(FLOW_KEYS & set(config)) and "num_train_timesteps" in config
    flow = flow or "FlowMatch" in name or {"eta", "s_noise"} <= set(config)
    table = bool(TABLE_KEYS & set(config)) or config.get("trained_betas") is not None
    if config.get("use_flow_sigmas") or kind == "flow_prediction":
        return "flow"
    if is_continuous(config) and config.get("sigma_min") and config.get("sigma_max"):
        respaced = config.get("use_karras_sigmas") or config.get("use_exponential_sigmas")
        return "edm" if respaced else "table"
    if flow and table and name:
        return "flow" if "FlowMatch" in name else "table"
    if flow != table:
        return "flow" if flow else "table"
    if config.get("sigma_data") and not flow:
        return "edm"
    return None


def _defaults(config: Mapping[str, Any]) -> Config:
    """Return the values that a scheduler of diffusers has by default; none of another class."""
    name = str(config.get("_class_name"))
    found = getattr(diffusers, name, None)
    if isinstance(found, type) and issubclass(found, SchedulerMixin):
        parameters = list(inspect.signature(found).parameters.values())
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
                f"{name}={config[name]!r} of this scheduler cannot be kept: {reason}; pass "
                f"{name}={neutral!r} or our {decides} instead"
            )
