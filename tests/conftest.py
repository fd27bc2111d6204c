import functools

import huggingface_hub
import pytest

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.training import pictures, sources


@pytest.fixture(autouse=True, scope="session")
def short_work():
    """Draw the pictures of a training in few steps, and encode the digits once in a process.

    Both cost more than the few steps that a test trains. What is asked for by name stays.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures.processes, "__defaults__", (2, 3, "memoryless"))
        patch.setattr(sources, "digits", functools.cache(sources.digits))
        yield


@pytest.fixture(params=["memory", "json"])
def convert(request, tmp_path):
    """Make a scheduler of a class from another's configuration, in memory or saved."""

    def make(source, target=GaussianFlowScheduler, **kwargs):
        if request.param == "memory":
            return target.from_config(source.config, **kwargs)
        source.save_pretrained(tmp_path)
        return target.from_pretrained(tmp_path, **kwargs)

    make.way = request.param
    return make


@pytest.fixture(scope="module")
def few_digits(short_work):
    """Let `digits` be the first 400 of them: to decode all takes longer than to train on a few."""
    found = sources.digits("train").select(range(400))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "digits", {"train": found}.__getitem__)
        yield


@pytest.fixture
def quick_datasets(tmp_path, monkeypatch):
    """Let `datasets` work without a network, from an empty cache, without its pauses."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    # of 5 s, at the end of every shuffled stream
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
