"""Imports go down the floors only, and nothing below the scheduler knows diffusers."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fm_diffusers

ROOT = Path(fm_diffusers.__file__).parent
FLOORS = [
    {"files", "forms"},
    {"tables"},
    {"paths"},
    {"couplings", "diffusions", "grids", "predictions", "stable_targets"},
    {"fields", "solvers", "weightings"},
    {"flow_maps", "likelihood", "objectives"},
    {"diffusers_internals"},
    {"scheduling", "second_time"},
    {"flow_map_networks"},
    {"scheduler"},
    {"adapters", "calibration", "certify", "flow_prediction", "pipelines", "rl"},
    {"modular", "pipeline"},
    {"evaluation", "training"},
]


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_imports_go_down_the_floors():
    for file in ROOT.rglob("*.py"):
        if file == ROOT / "__init__.py":
            continue
        own = file.relative_to(ROOT).with_suffix("").parts[0]
        for name in imports(file):
            if name.startswith("fm_diffusers."):
                other = name.split(".")[1]
                assert own == other or floor(other) < floor(own), f"{file}: {name}"
            if name.startswith("diffusers"):
                assert floor(own) >= floor("diffusers_internals"), f"{file}: {name}"


def test_saved_module_paths_do_not_move():
    scheduler, pipeline = fm_diffusers.GaussianFlowScheduler, fm_diffusers.FlowMatchingPipeline
    assert scheduler.__module__ == "fm_diffusers.scheduler"
    assert pipeline.__module__ == "fm_diffusers.pipeline"
    # diffusers loads a class whose module has this name
    assert "SchedulerMixin" in vars(__import__("fm_diffusers.scheduler", fromlist=["scheduler"]))
    networks = importlib.import_module("fm_diffusers.flow_map_networks")
    assert "ModelMixin" in vars(networks)
    for network in networks.OF_TWO_TIMES.values():
        assert network.__module__ == "fm_diffusers.flow_map_networks"


def test_objects_below_the_scheduler_are_frozen_configuration():
    path = fm_diffusers.PATHS["linear"]()
    solver = fm_diffusers.SOLVERS["heun"](path)
    for instance in (path, solver, fm_diffusers.DIFFUSIONS["memoryless"]):
        assert instance.__dataclass_params__.frozen


def test_no_class_has_more_than_one_base_of_ours():
    for module in pkgutil.walk_packages([str(ROOT)], "fm_diffusers."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and value.__module__ == module.name:
                ours = [base for base in value.__bases__ if base.__module__.startswith("fm_")]
                assert len(ours) < 2, f"{module.name}.{name}: {ours}"


BELOW = {name for names in FLOORS[: floor("scheduling")] for name in names}
BELOW_DIFFUSERS = sorted(BELOW - {"diffusers_internals"})


def test_the_mathematics_is_imported_without_diffusers():
    code = (
        f"import sys; {'; '.join(f'import fm_diffusers.{name}' for name in BELOW_DIFFUSERS)}; "
        "print([name for name in ('diffusers', 'transformers', 'accelerate') if name in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_found_and_unknown_ones_are_told():
    for name in fm_diffusers.__all__:
        assert getattr(fm_diffusers, name) is not None
        assert name in dir(fm_diffusers)
    with pytest.raises(AttributeError, match="no attribute 'Flow'"):
        _ = fm_diffusers.Flow
