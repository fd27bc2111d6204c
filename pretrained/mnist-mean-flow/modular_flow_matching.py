"""Stands for a class of the package fm_diffusers, which must be installed."""

from importlib import import_module

try:
    FlowMatchingBlocks = import_module("fm_diffusers.modular").FlowMatchingBlocks
except ModuleNotFoundError as error:
    if error.name != "fm_diffusers":
        raise
    raise ImportError(
        "This model needs the package fm_diffusers, which is not installed: install it by\n"
        'pip install "fm_diffusers @ git+https://github.com/fm-diffusers/fm_diffusers"'
    ) from None
