"""Distances on sets where they are known, and a classifier that has to know digits."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from fm_diffusers.evaluation import (
    Judge,
    covered,
    frechet_distance,
    sliced_wasserstein,
    train_classifier,
)

pytest.importorskip("torchmetrics")
pytest.importorskip("ot")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- distances -----------------------------------------------------------------------------------


def test_the_frechet_distance_is_that_of_two_gaussians():
    real, samples = normal(200, 6) @ normal(6, 6, seed=1), 1 + normal(300, 6, seed=2)
    (m, c), (n, d) = (
        (x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in (real, samples)
    )
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet_distance(real, samples) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "samples, said",
    [
        (normal(20, 5), r"\(20, 6\) and \(20, 5\)"),
        (normal(1, 6), "at least two samples each"),
        (normal(6), "must have the shapes"),
        (normal(20, 6) / 0, "samples holds features that are not finite"),
    ],
)
def test_features_without_a_distance_are_refused(samples, said):
    with pytest.raises(ValueError, match=said):
        frechet_distance(normal(20, 6), samples)


def test_moved_and_scaled_features_are_as_far_as_they_were_taken():
    real = normal(100, 5)
    real -= real.mean(0)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    scaled = 4 * real.var(0).sum().item()  # tr S (3 - 1)^2
    assert frechet_distance(real, 3 * real + 2) == pytest.approx(4 * 5 + scaled, rel=1e-9)


def test_manifolds_by_hand():
    real, samples = normal(40, 3), normal(30, 3, seed=1)
    count = 0
    for x in samples.numpy():
        for centre in real.numpy():
            lengths = sorted(np.linalg.norm(real.numpy() - centre, axis=1))
            if np.linalg.norm(x - centre) <= lengths[3]:  # the first is the centre itself
                count += 1
                break
    assert covered(samples, real) == count / 30
    assert 0.2 < count / 30 < 1


def test_precision_and_recall_where_they_are_known():
    """Two far clusters: samples miss one of them, or half of them lie nowhere."""
    one, other, nowhere = (normal(50, 4, seed=k) + 100 * k for k in range(3))
    both = torch.cat([one, other])
    assert covered(both, both) == 1
    assert (covered(one, both), covered(both, one)) == (1, 0.5)
    half = torch.cat([one, nowhere])
    assert (covered(half, both), covered(both, half)) == (0.5, 0.5)
    assert covered(nowhere, both) == 0
    permuted = both[torch.randperm(100)]
    assert covered(permuted, both) == 1


def test_blocks_do_not_matter(monkeypatch):
    real, samples = normal(70, 3), normal(60, 3, seed=1)
    whole = covered(samples, real)
    monkeypatch.setattr("fm_diffusers.evaluation.BLOCK", 7)
    assert covered(samples, real) == whole


def test_the_sliced_distance_is_the_distance_along_lines():
    a, b = normal(50, 1), 2 + normal(50, 1, seed=1)
    along = (a.sort(0).values - b.sort(0).values).square().mean().sqrt().item()
    assert sliced_wasserstein(a, b) == pytest.approx(along, rel=1e-9)
    # moved by v, it is the root of the mean of (theta v)^2, |v|^2/d over all directions
    images = normal(20, 1, 4, 4)
    moved = sliced_wasserstein(images, images + 0.5, num_projections=4000)
    assert moved == pytest.approx(0.5, rel=0.05)


# --- the classifier and what it judges -----------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Images and labels: a half for the classifier, two quarters."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels, order = (
        torch.tensor(data.target),
        torch.randperm(len(images), generator=torch.Generator().manual_seed(0)),
    )
    parts = order.split([898, 450, 449])
    return [(images[part], labels[part]) for part in parts]


@pytest.fixture(scope="module")
def judge(digits):
    return Judge(train_classifier(*digits[0]), digits[1][0])


def test_it_knows_digits_that_it_has_not_seen(judge, digits):
    figures = judge(*digits[2])
    assert figures["accuracy"] >= 0.97
    wrong = judge(digits[2][0], (digits[2][1] + 1) % 10)
    assert wrong["accuracy"] <= 1 - figures["accuracy"]


def test_more_noise_is_worse(judge, digits):
    images = digits[2][0]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    real, worse, worst = (judge(images + level * noise) for level in (0, 0.3, 1))
    for name, sign in (("frechet_distance", 1), ("sliced_wasserstein", 1), ("precision", -1)):
        assert sign * real[name] < sign * worse[name] < sign * worst[name]
    assert real["precision"] > 0.8 and real["recall"] > 0.8
    assert real["accuracy"] is None


def test_a_class_that_is_missing_lowers_the_recall(judge, digits):
    images, labels = digits[2]
    kept = judge(images[labels >= 5])
    assert kept["precision"] > 0.8
    assert kept["recall"] < 0.65


def test_colours_of_larger_images_are_learned():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    images = 0.5 * torch.randn(300, 3, 20, 24, generator=generator)
    images[torch.arange(300), labels] += 0.5
    classifier = train_classifier(images[:200], labels[:200], num_steps=40)
    judge = Judge(classifier, images[:200])
    assert judge(images[200:], labels[200:])["accuracy"] > 0.95


def test_training_is_seeded_and_leaves_the_global_generator_alone(digits):
    images, labels = digits[0]
    state = torch.get_rng_state()
    first, second, other = (
        train_classifier(images, labels, num_steps=3, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_what_cannot_be_compared_is_refused(judge, digits):
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\) of the real images, got \(3, 8, 8\)"):
        judge(torch.zeros(5, 3, 8, 8))
    with pytest.raises(ValueError, match="3 neighbours need more points, got 3"):
        judge(digits[2][0][:3])
    images, labels = digits[2][0][:9], digits[2][1][:9]
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="samples must be finite, got NaN or infinite"):
            judge(images.clone().index_fill_(0, torch.tensor([4]), broken))
    for wrong in (labels[:1], labels[:8], labels[:, None]):
        with pytest.raises(ValueError, match="labels must be one for each of the 9 samples, got"):
            judge(images, wrong)
    with pytest.raises(ValueError, match="one for each of the 4 images, got shape .3,."):
        train_classifier(torch.zeros(4, 1, 8, 8), torch.zeros(3, dtype=torch.long))
