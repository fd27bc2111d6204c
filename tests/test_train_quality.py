"""The comparison of trainings measures what it says."""

import importlib

import pytest
import torch

from fm_diffusers import GaussianFlowScheduler

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")
TINY = {
    "dataset_name": "digits",
    "block_out_channels": [8, 16],
    "max_train_steps": 3,
    "num_samples": 40,
    "sample_batch_size": 20,
    "evaluations": [2, 3],
    "cross_evaluations": [2],
    "seeds": [0],
}


@pytest.fixture
def quality():
    return importlib.import_module("benchmarks.training.quality")


@pytest.mark.slow
def test_every_row_is_measured_once_and_reported(quality, tmp_path, capsys):
    args = quality.QualityArguments(**TINY, trainings=["ours", "DDPM"], output_dir=str(tmp_path))
    quality.main(args)
    table = (tmp_path / "train_quality.csv").read_text()
    assert len(table.splitlines()) == 1 + (2 + 1) + (2 + 1 + 1)
    report = (tmp_path / "train_quality.md").read_text()
    assert "| DDPM | DDIM |" in report and (tmp_path / "train_quality.png").exists()
    quality.main(args)
    assert (tmp_path / "train_quality.csv").read_text() == table


def test_trainings_differ_in_the_loss_alone(quality, monkeypatch):
    """Every training sees the same weights, images and labels at its first step."""
    seen = {}

    def spy(name):
        def loss(network, z, label, drop):
            weights = torch.cat([weight.detach().flatten() for weight in network.parameters()])
            seen.setdefault(name, (weights, z, label, drop(label)))
            return network(z, torch.zeros(len(z)), label).sample.square().mean()

        return loss

    table = {name: (spy(name), samplers) for name, (_, samplers) in quality.TRAININGS.items()}
    monkeypatch.setattr(quality, "TRAININGS", table)
    images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(100) % 10
    for name in table:
        quality.train(quality.QualityArguments(**TINY), name, 1, images, labels)
    first, *others = seen.values()
    assert len(others) == 4
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name, order", [("euler", 1), ("midpoint", 2)])
def test_the_steps_of_torchcfm_are_those_of_our_scheduler(quality, name, order):
    from benchmarks.training import quality_methods as methods

    def field(x, t):
        return torch.sin(3 * x) + t[:, None] / 1000

    x = torch.randn(7, 3)
    scheduler = GaussianFlowScheduler(solver=name, grid="uniform")
    torch.testing.assert_close(
        getattr(methods, name)(field, x, 6),
        methods.loop(scheduler, field, x, 6 // order),
        rtol=1e-5,
        atol=1e-5,
    )


def test_an_unknown_training_is_refused(quality):
    with pytest.raises(ValueError, match="must be of .*'DDPM'.*got .'EDM'."):
        quality.QualityArguments(**TINY, trainings=["EDM"])


def test_a_folder_takes_rows_of_one_setting_only(quality, tmp_path):
    path = tmp_path / "setting.json"
    quality.check_setting(quality.QualityArguments(**TINY), path)
    quality.check_setting(quality.QualityArguments(**TINY | {"seeds": [1]}), path)
    with pytest.raises(ValueError, match="--max_train_steps .* is 3, got 4"):
        quality.check_setting(quality.QualityArguments(**TINY | {"max_train_steps": 4}), path)


def test_torchcfm_trains(quality):
    pytest.importorskip("torchcfm")
    images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8)
    for name in ("torchcfm", "torchcfm, OT"):
        weights = quality.train(
            quality.QualityArguments(**TINY), name, 0, images, torch.arange(100) % 10
        )
        assert all(weight.isfinite().all() for weight in weights.values())
