import copy
import functools

import huggingface_hub
import pytest

from fm_diffusers import GaussianFlowScheduler, evaluation
from fm_diffusers.training import data, pictures, sources


@pytest.fixture(autouse=True, scope="session")
def short_work():
    """Draw pictures of a training in few steps, encode, decode and learn the digits once.

    Each costs more than the few steps that a test trains. What is asked for by name stays.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures.processes, "__defaults__", (2, 3, "memoryless"))
        patch.setattr(sources, "digits", functools.cache(sources.digits))
        patch.setattr(data, "decode_all", decoded_once(data.decode_all))
        patch.setattr(evaluation, "train_classifier", trained_once(evaluation.train_classifier))
        yield


def decoded_once(decode_all):
    """Return the images of a data set that this process has decoded, unless some are broken."""
    known = {}

    def decoded(rows, column, decoder):
        key = rows._fingerprint, column, decoder
        found = known.get(key) or decode_all(rows, column, decoder)
        return known.setdefault(key, found) if len(found[0]) == len(rows) else found

    return decoded


def trained_once(train):
    """Return a copy of the classifier that this process has trained on the same images."""
    known = {}

    def classifier(images, labels, **options):
        key = images.numpy().tobytes(), labels.numpy().tobytes(), *sorted(options.items())
        if key not in known:
            known[key] = train(images, labels, **options)
        return copy.deepcopy(known[key])

    return classifier


@pytest.fixture(params=["json", pytest.param("memory", marks=pytest.mark.slow)])
def convert(request, tmp_path):
    """Make a scheduler of a class from another's configuration, saved or, slow, in memory.

    That both are the same is tested in test_swap_ways.py.
    """

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
