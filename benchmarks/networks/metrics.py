r"""How far samples are from where they should be: as points, and as a distribution.

**As points.** A sampler solves an ODE, so each of its samples has one right answer, the converged
one from the same noise. `distance` gives the root mean square error over everything, which a few
samples that ended elsewhere decide, and the median over the samples of their own root mean square
errors, which they do not.

**As a distribution.** `Judge` gives the Fréchet distance to real images and the share of samples
with the right label, by the classifier of `fm_diffusers.evaluation`. The images are of the split
that networks are trained on, and not among those that the classifier was trained on.
"""

from pathlib import Path

import torch
from torch import Tensor

from fm_diffusers.evaluation import Classifier, frechet_distance, train_classifier
from fm_diffusers.training.data import load_images


def distance(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the root mean square error and the median over samples of each one's own."""
    squares = (samples - reference).double().square().flatten(1).mean(1)
    return squares.mean().sqrt().item(), squares.sqrt().median().item()


class Judge:
    """A classifier of real images, and two sets of others that it has not seen.

    Args:
        dataset_name: as in the training script.
        cache: file that keeps the trained classifier.
        train_images: number of real images that it is trained on.
        held_out: number of further ones that samples are compared with, and of those behind
            `floor`; at most a quarter of all, each.
        seed: of the choice.
    """

    def __init__(
        self,
        dataset_name: str,
        cache: Path,
        train_images: int = 30_000,
        held_out: int = 5_000,
        seed: int = 0,
    ) -> None:
        data = load_images(dataset_name)
        if data.labels is None:
            raise ValueError(f"{dataset_name!r} has no class labels, a classifier needs them")
        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))
        order = order[: train_images + 2 * held_out]
        images, labels = data.images[order].float() / 127.5 - 1, data.labels[order]
        count = min(held_out, len(images) // 4)
        self.further = images[count : 2 * count], labels[count : 2 * count]
        if cache.exists():
            self.classifier = Classifier(data.shape[0], int(labels.max()) + 1).eval()
            self.classifier.load_state_dict(torch.load(cache, weights_only=True))
        else:
            self.classifier = train_classifier(images[2 * count :], labels[2 * count :])
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.classifier.state_dict(), cache)
        self.real_features = self.classifier.features(images[:count])
        self.held_out_accuracy = self(*self.further)[1]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the Fréchet distance to the real images and the share with the right label."""
        features = self.classifier.features(images.float().clamp(-1, 1))
        return (
            frechet_distance(self.real_features, features),
            self.classifier.accuracy(features, labels),
        )

    def floor(self, count: int) -> float:
        """Return the Fréchet distance of so many further real images."""
        return self(*(real[:count] for real in self.further))[0]
