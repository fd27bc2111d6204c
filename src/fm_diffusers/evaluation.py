r"""How far samples are from real images, in the features of a classifier of the real ones.

A small classifier trained on the data set itself sees what matters there, needs no download and
takes images of any size. On its features, of samples :math:`g` and of real images :math:`r`:

- **Fréchet distance**, between the Gaussians with their means and covariances,

  .. math:: |\mu_r - \mu_g|^2
            + \mathrm{tr}\big(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}\big);

- **precision**, the share of samples within the manifold of the real images, and **recall**, the
  share of real images within the manifold of the samples, a manifold being the union of the balls
  around its points that reach to their third nearest neighbour (scattered samples have large
  balls: a recall is worth something together with a high precision only);
- **accuracy**, the share of samples that the classifier takes for the class that was asked for.

On the pixels, where the classifier has no say: the **sliced Wasserstein** distance, the root mean
square over directions :math:`\theta` of :math:`W_2(\theta \cdot r, \theta \cdot g)`.

None is zero (or one) between two finite sets of real images: what `Judge` says of further real
images, as many as there are samples, is the floor that a perfect sampler would reach.

References: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", https://arxiv.org/abs/1706.08500; Kynkäänniemi et al., "Improved Precision and Recall
Metric for Assessing Generative Models", https://arxiv.org/abs/1904.06991; Bonneel et al., "Sliced
and Radon Wasserstein Barycenters of Measures" (2015).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

#: Images and features that are looked at together.
BLOCK = 500


class Classifier(nn.Module):
    """A small convolutional classifier of images of any size from 8x8; called, it gives logits.

    Args:
        channels: of the images.
        num_classes: number of classes.
        num_features: length of the vector before the last layer, see `features`.
    """

    def __init__(self, channels: int, num_classes: int, num_features: int = 64) -> None:
        super().__init__()
        layers = ((channels, 16, 2), (16, 32, 1), (32, 64, 2), (64, num_features, 2))
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=stride, padding=1), nn.BatchNorm2d(b), nn.ReLU()
                )
                for a, b, stride in layers
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images in [-1, 1], shape `(batch, num_classes)`."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer sees, shape `(n, num_features)`, of images in [-1, 1]."""
        return torch.cat([self.body(part) for part in images.split(BLOCK)])

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of features of images that are taken for their labels."""
        return (self.head(features).argmax(1) == labels).cpu().double().mean().item()


def train_classifier(
    images: Tensor,
    labels: Tensor,
    num_steps: int = 600,
    batch_size: int = 128,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> Classifier:
    """Return a classifier trained with AdamW and a one-cycle learning rate.

    Args:
        images: in [-1, 1], shape `(n, C, H, W)`, on the device of the training.
        labels: numbers from 0, shape `(n,)`.
        num_steps: number of batches.
        batch_size: images of a batch, drawn with replacement.
        learning_rate: its maximum.
        seed: of weights and batches; the global generators are left as they are.

    Raises:
        ValueError: if there is not one label for each image.
    """
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be one for each of the {len(images)} images, got shape "
            f"{tuple(labels.shape)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(images.shape[1], int(labels.max()) + 1).to(images.device)
        batches = torch.randint(len(images), (num_steps, batch_size)).to(images.device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    for batch in batches:
        loss = nn.functional.cross_entropy(
            model(images[batch]), labels[batch], label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()


def frechet_distance(real: Tensor, samples: Tensor) -> float:
    """Return the Fréchet distance between features, each of shape `(n, num_features)`.

    Raises:
        ValueError: for features of different lengths, of fewer than two samples, or not finite.

    Example:
        >>> real = torch.randn(100, 4).double()
        >>> round(frechet_distance(real, real + 3), 6)  # four times 3^2
        36.0
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if real.ndim != 2 or real.shape[1:] != samples.shape[1:] or min(len(real), len(samples)) < 2:
        raise ValueError(
            "features must have the shapes (n, num_features) and (m, num_features) with at least "
            f"two samples each, got {tuple(real.shape)} and {tuple(samples.shape)}"
        )
    for name, features in (("real", real), ("samples", samples)):
        if not features.isfinite().all():
            raise ValueError(
                f"{name} holds features that are not finite: the distance is that of numbers, so "
                "look for what diverged"
            )
    as_they_are: Any = nn.Identity()
    as_they_are.num_features = real.shape[1]
    metric = FrechetInceptionDistance(feature=as_they_are, normalize=True).set_dtype(torch.double)
    metric.update(real.cpu().double(), real=True)
    metric.update(samples.cpu().double(), real=False)
    return metric.compute().item()


def covered(points: Tensor, manifold: Tensor, neighbours: int = 3) -> float:
    """Return the share of points in the balls around those of `manifold`; see the module.

    Args:
        points: shape `(n, num_features)`.
        manifold: shape `(m, num_features)`.
        neighbours: a ball reaches to this nearest neighbour of its centre in `manifold`.

    Raises:
        ValueError: if there are no so many neighbours.

    Example:
        >>> line = torch.arange(5.0)[:, None]
        >>> covered(torch.tensor([[-3.0], [-2.0], [2.5], [7.0]]), line, neighbours=2)
        0.5
    """
    if len(manifold) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more points, got {len(manifold)}")
    # exactly 0 to itself
    distance: dict[str, Any] = {"p": 2.0, "compute_mode": "donot_use_mm_for_euclid_dist"}
    radius = [
        torch.cdist(part, manifold, **distance).kthvalue(neighbours + 1).values
        for part in manifold.split(BLOCK)
    ]
    inside = [
        (torch.cdist(part, manifold, **distance) <= torch.cat(radius)).any(1)
        for part in points.split(BLOCK)
    ]
    return torch.cat(inside).cpu().double().mean().item()


def sliced_wasserstein(
    real: Tensor, samples: Tensor, num_projections: int = 200, seed: int = 0
) -> float:
    """Return the sliced Wasserstein distance between images, each of shape `(n, ...)`."""
    from ot import sliced_wasserstein_distance

    flat = [images.flatten(1).cpu().double().numpy() for images in (real, samples)]
    return float(sliced_wasserstein_distance(*flat, n_projections=num_projections, seed=seed))


@dataclass(frozen=True)
class Judge:
    """Says of samples all that the module names, against one set of real images.

    Args:
        classifier: trained on other images of the data set.
        real: real images in [-1, 1], shape `(n, C, H, W)`, which the classifier has not seen: its
            features of images that it has learned by heart are not those of any sample.
    """

    classifier: Classifier
    real: Tensor

    @cached_property
    def real_features(self) -> Tensor:
        """Features of the real images."""
        return self.classifier.features(self.real)

    def __call__(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float | None]:
        """Return all metrics of images in [-1, 1], by name.

        Args:
            samples: of the shape of the real images.
            labels: what was asked for, shape `(n,)`; without them there is no accuracy.

        Raises:
            ValueError: if the samples have another shape or are not finite, or there is not one
                label for each.
        """
        if samples.shape[1:] != self.real.shape[1:]:
            raise ValueError(
                f"samples must have the shape {tuple(self.real.shape[1:])} of the real images, "
                f"got {tuple(samples.shape[1:])}"
            )
        if not samples.isfinite().all():
            raise ValueError(
                "samples must be finite, got NaN or infinite numbers: leave those samples out and "
                "say how many they were"
            )
        if labels is not None and labels.shape != samples.shape[:1]:
            raise ValueError(
                f"labels must be one for each of the {len(samples)} samples, got shape "
                f"{tuple(labels.shape)}"
            )
        features = self.classifier.features(samples)
        return {
            "frechet_distance": frechet_distance(self.real_features, features),
            "precision": covered(features, self.real_features),
            "recall": covered(self.real_features, features),
            "accuracy": None if labels is None else self.classifier.accuracy(features, labels),
            "sliced_wasserstein": sliced_wasserstein(self.real, samples),
        }
