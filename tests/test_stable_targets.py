"""Targets averaged over further data, against the posteriors of exact distributions."""

from functools import partial

import pytest
import torch

from benchmarks.training import references as benchmark
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.objectives import weighted_loss
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import target
from fm_diffusers.stable_targets import stable_pair
from fm_diffusers.training.data import ImageData
from fm_diffusers.training.references import References

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(40, 3, 2, generator=GENERATOR).double()
EPS = torch.randn(5, 3, 2, generator=GENERATOR).double()
T = torch.tensor([0.02, 0.3, 0.6, 0.9, 0.98]).double()
close = partial(torch.testing.assert_close, rtol=0)
on_every_path = pytest.mark.parametrize("name", PATHS)


@on_every_path
def test_over_all_data_a_target_is_the_marginal_field(name):
    """Of a distribution of so many points: a mixture of Gaussians of nearly no width."""
    path, z = PATHS[name](), DATA[:5]
    field = GaussianMixture(DATA.flatten(1), 1e-7).field(path)
    for i, x in enumerate(path.flow_map(z, EPS, T)):
        one = slice(i, i + 1)
        others = torch.cat([DATA[:i], DATA[i + 1 :]])
        pair = stable_pair(path, z[one], EPS[one], T[one], others)
        found = target(path, "velocity", *pair, T[one])
        close(found.flatten(1), field(x.flatten()[None], T[i]), atol=1e-8)


@on_every_path
def test_a_pair_lies_at_the_same_sample(name):
    path, z = PATHS[name](), DATA[:5]
    pair = stable_pair(path, z, EPS, T, DATA[5:])
    close(path.flow_map(*pair, T), path.flow_map(z, EPS, T), atol=1e-12)
    assert not torch.allclose(pair[0], z)


@pytest.mark.parametrize("name", [name for name in PATHS if PATHS[name]().alpha(0.0) == 0])
def test_at_pure_noise_it_is_the_mean_of_the_data(name):
    z, t = DATA[:2], torch.zeros(2).double()
    mean, noise = stable_pair(PATHS[name](), z, EPS[:2], t, DATA[5:])
    for own, found in zip(z, mean, strict=True):
        close(found, torch.cat([own[None], DATA[5:]]).mean(0), atol=1e-12)
    close(noise, EPS[:2], atol=0)


@on_every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_data_it_is_the_data_point(name, dtype):
    """Even beside references that are the point itself, or all but."""
    z, eps, rest = (part.to(dtype) for part in (5 * DATA[:2], EPS[:2], DATA[5:]))
    references = torch.cat([z, z + 1e-6, rest])
    for t in (1.0, 1 - 1e-7, 0.999):
        mean, noise = stable_pair(PATHS[name](), z, eps, torch.full((2,), t).to(dtype), references)
        close(mean, z, atol=1e-5)
        close(noise, eps, atol=1e-3)


def test_more_data_leave_less_variance_and_the_same_mean():
    """Of the target of a standard normal distribution at one sample and time: mean u x/(...)."""
    path, runs, x, t = Linear(), 4000, 0.5, 0.2
    spread, std = [], (t**2 + (1 - t) ** 2) ** 0.5
    posterior = t * x / std**2
    for count in (0, 4, 64):
        data = torch.randn(count, runs, 1, generator=GENERATOR).double()
        z = posterior + (1 - t) / std * torch.randn(runs, 1, generator=GENERATOR).double()
        given = (z, (x - t * z) / (1 - t), torch.full((runs,), t, dtype=torch.float64))
        parts = zip(*(part.split(1) for part in given), data.unbind(1), strict=True)
        means = torch.cat([stable_pair(path, *part)[0] for part in parts])
        spread.append(means.std())
        close(means.mean(), torch.tensor(posterior).double(), atol=0.06)
    assert spread[1] < 0.6 * spread[0] and spread[2] < 0.2 * spread[0]


def test_a_loss_takes_the_pair():
    path, z, t = Linear(), DATA[:5], T
    pair = stable_pair(path, z, EPS, t, DATA[5:])
    output = target(path, "velocity", *pair, t)
    assert weighted_loss(output, path, *pair, t).max() < 1e-20


@pytest.mark.parametrize(
    "shapes", [((2, 3), (2, 3), (2,), (4, 2)), ((2, 3), (3, 3), (2,), (4, 3)), ((2, 3),) * 4]
)
def test_shapes_that_do_not_agree_are_refused(shapes):
    with pytest.raises(ValueError, match="references the shape"):
        stable_pair(Linear(), *map(torch.ones, shapes))


# --- images to draw from -------------------------------------------------------------------------


def images_of(labels, held=True):
    """Return images of two pixels whose value is their label."""
    values = torch.tensor(labels, dtype=torch.uint8)
    images = values[:, None, None, None].expand(-1, 1, 1, 2)
    return ImageData(None, (1, 1, 2), images=images if held else None, labels=torch.tensor(labels))


def test_references_are_of_the_class_of_the_sample():
    """At pure noise the pair is the mean of own image and references: its class, or of all."""
    torch.manual_seed(0)
    references = References(images_of([0, 1, 5, 5, 5, 1]), 20_000, torch.Tensor.double)
    label = torch.tensor([5, -1, 0, 5])
    z, eps = label[:, None, None, None].double().expand(4, 1, 1, 2), torch.randn(4, 1, 1, 2)
    mean, noise = references.pair(Linear(), z, eps.double(), torch.zeros(4).double(), label)
    close(mean[:, 0, 0, 0], torch.tensor([5, 17 / 6, 0, 5]).double(), atol=0.06)
    close(noise, eps.double(), atol=0)
    mean, _ = references.pair(Linear(), z, eps.double(), torch.zeros(4).double(), None)
    close(mean, torch.full_like(mean, 17 / 6), atol=0.06)


def test_references_are_drawn_anew_by_the_generator_of_the_run():
    references = References(images_of([*range(200)]), 3, torch.Tensor.double)
    torch.manual_seed(0)
    first, second = (references.draw(None, torch.device("cpu")) for _ in range(2))
    assert len(first) == 3 and not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(references.draw(None, torch.device("cpu")), first)


def test_images_that_are_not_in_memory_are_no_references():
    with pytest.raises(ValueError, match="--reference_batch_size 4 draws .* raise --memory_limit"):
        References(images_of([0, 1], held=False), 4, torch.Tensor.double)


def test_the_benchmark_says_what_is_left_of_the_variance(tmp_path):
    flags = {"dataset_name": "digits", "times": [0.05, 0.3], "references": [4, 64]}
    rows = benchmark.main(benchmark.Arguments(**flags, output_dir=str(tmp_path)))
    assert [(row.t, row.references) for row in rows] == [
        (t, n) for t in (0.05, 0.3) for n in (4, 64)
    ]
    left = [row.share for row in rows]
    assert 0 < left[1] < left[0] < 0.5 and left[1] < left[3] < left[2] < 1
    written = (tmp_path / "references.md").read_text()
    assert f"| 0.05 | {rows[0].alone:.3f} | {left[0]:.1%}".replace("%", " %") in written
