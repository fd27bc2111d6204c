r"""How far samples are from where they should be: as points, and as a distribution.

**As points.** A sampler solves an ODE, so each of its samples has one right answer, the converged
one from the same noise. `distance` gives the root mean square error over everything, which a few
samples that ended elsewhere decide, and the median over the samples of their own root mean square
errors, which they do not.

**As a distribution.** The Fréchet distance between features of samples and of real images, those
of a small classifier of the real images (`torchmetrics` computes it from any features):

.. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}\big(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1\Sigma_2)^{1/2}\big)

References: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", https://arxiv.org/abs/1706.08500 (the distance).
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


def distance(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the root mean square error and the median over samples of each one's own."""
    squares = (samples - reference).double().square().flatten(1).mean(1)
    return squares.mean().sqrt().item(), squares.sqrt().median().item()


def real_images(dataset_name: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return `count` images of the training script's data, in [-1, 1] and shuffled, and labels."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
    from train_mnist import Arguments, load_images

    images, labels = load_images(Arguments(dataset_name=dataset_name))
    if labels is None:
        raise ValueError(f"{dataset_name!r} has no class labels, a classifier needs them")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[order].float() / 127.5 - 1, labels[order]


class Classifier(nn.Module):
    """A small convolutional classifier; called, it returns the features before its last layer.

    Args:
        channels: of the images.
        classes: number of classes.
        num_features: length of the feature vector.
    """

    def __init__(self, channels: int, classes: int, num_features: int = 64) -> None:
        super().__init__()
        self.num_features = num_features
        widths = (channels, 16, 32, num_features)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()
                )
                for a, b in zip(widths, widths[1:], strict=False)
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(num_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images in [-1, 1], shape `(batch, num_features)`."""
        return self.body(x)


def train_classifier(
    images: Tensor, labels: Tensor, epochs: int = 3, batch_size: int = 128, seed: int = 0
) -> Classifier:
    """Return a classifier trained with AdamW and a one-cycle learning rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(images.shape[1], int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = len(images) // batch_size
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * batches)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(batch_size)[:batches]:
                logits = model.head(model(images[batch]))
                loss = nn.functional.cross_entropy(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the classifier takes for their labels."""
    right = [
        (model.head(model(x)).argmax(1) == y)
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return torch.cat(right).double().mean().item()


class Judge:
    """A classifier and the features of held-out real images.

    Args:
        dataset_name: as in the training script.
        cache: file that keeps the trained classifier.
        train_images: number of real images that it is trained on.
        held_out: number of further real images, which samples are compared with.
    """

    def __init__(
        self, dataset_name: str, cache: Path, train_images: int = 30_000, held_out: int = 5_000
    ) -> None:
        images, labels = real_images(dataset_name, train_images + held_out)
        held_out = min(held_out, len(images) // 3)
        self.images, self.labels = images[:held_out], labels[:held_out]
        if cache.exists():
            self.classifier = Classifier(images.shape[1], int(labels.max()) + 1).eval()
            self.classifier.load_state_dict(torch.load(cache, weights_only=True))
        else:
            self.classifier = train_classifier(images[held_out:], labels[held_out:])
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.classifier.state_dict(), cache)
        self.held_out_accuracy = accuracy(self.classifier, self.images, self.labels)
        self.frechet = FrechetInceptionDistance(
            feature=self.classifier, reset_real_features=False, normalize=True
        )
        self._update(self.images, real=True)

    def _update(self, images: Tensor, real: bool) -> None:
        for part in images.split(500):
            self.frechet.update(part, real=real)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the Fréchet distance to the real images and the share with the right label."""
        images = images.float().clamp(-1, 1)
        self._update(images, real=False)
        value = self.frechet.compute().item()
        self.frechet.reset()
        return value, accuracy(self.classifier, images, labels)
