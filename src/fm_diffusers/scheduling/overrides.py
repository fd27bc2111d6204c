"""What a user says beside a configuration: keywords in its place, and what they make void."""

import difflib
import warnings
from typing import Any

Config = dict[str, Any]

#: What goes when a user gives another value for the name and none for these.
LEFTOVERS: dict[str, dict[str, Any]] = {
    "path": {"path_kwargs": None, "use_flow_sigmas": False},
    "sampling_path": {"sampling_path_kwargs": None},
    "solver": {"solver_kwargs": None},
    "diffusion": {"diffusion_kwargs": None},
    "grid": {
        "grid_kwargs": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    },
    "use_karras_sigmas": {"use_exponential_sigmas": False, "use_beta_sigmas": False},
    "use_exponential_sigmas": {"use_karras_sigmas": False, "use_beta_sigmas": False},
    "use_beta_sigmas": {"use_karras_sigmas": False, "use_exponential_sigmas": False},
    "shift": {"use_dynamic_shifting": False},
    "beta_schedule": {"trained_betas": None},
    "beta_start": {"trained_betas": None},
    "beta_end": {"trained_betas": None},
}

#: Those that may rest in a configuration, overruled by what then goes: named, they are meant.
RESTING = ("shift", "beta_schedule", "beta_start", "beta_end")

#: Keywords with which diffusers loads any component, schedulers among them.
LOADING = frozenset(
    """cache_dir device_map disable_mmap dtype force_download local_files_only low_cpu_mem_usage
    max_memory mirror offload_folder offload_state_dict output_loading_info proxies
    quantization_config revision subfolder token torch_dtype trust_remote_code use_safetensors
    user_agent variant""".split()
)


def check_keywords(given: Config, known: set[str]) -> None:
    """Raise for a keyword that would have no effect."""
    for name in sorted(set(given) - known - LOADING):
        if not name.startswith("_"):
            raise ValueError(
                f"{name}={given[name]!r} is none of the arguments"
                f"{_suggestion(name, known) or ': give one of ' + ', '.join(sorted(known))}"
            )


def _suggestion(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def warn_of_unknown(config: Config, known: set[str]) -> None:
    """Warn by name of keys of a configuration that no table knows."""
    for name in sorted(set(config) - known):
        if name.startswith("_"):
            continue
        warnings.warn(
            f"the configuration has {name}={config[name]!r}, which is not known here and has no "
            f"effect{_suggestion(name, known) or ': leave it out'}",
            stacklevel=4,
        )


def without_leftovers(config: Config, given: Config) -> Config:
    """Return the configuration without what depended on values that the user replaces."""
    for name, rest in LEFTOVERS.items():
        if name in given and (given[name] != config.get(name) or name in RESTING):
            config = config | {k: v for k, v in rest.items() if k in config and k not in given}
    if "shift" in given and "flow_shift" in config:  # the same, for schedulers of theirs
        config = config | {"flow_shift": given["shift"]}
    return config
