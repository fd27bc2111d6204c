r"""The problems of the benchmarks: data whose marginal field is known exactly.

A sampler is measured against the truth only where the field is the truth. Three kinds of data
have closed forms on every Gaussian path :math:`x_t = \alpha z + \beta\varepsilon`:

- `modes`: a mixture of eight round Gaussians in the plane, of unequal weights and sizes;
- `images`: a kernel mixture, one Gaussian of bandwidth h at each of many real images, hence a
  finite data set seen by a network that has learned it by heart; `small_images`: the same at
  fewer images of half the side;
- `classes`: one full-covariance Gaussian for each class of images, the nearest to a learned model.

In the eigenbasis of a covariance :math:`V \Lambda V^T` a Gaussian is round in every coordinate:
with :math:`r = V^T(x - \alpha m)` and :math:`v = \alpha^2\Lambda + \beta^2`, which vanishes
nowhere,

.. math:: \nabla\log p_t(x|k) = -V \frac{r}{v}, \qquad
          E[z|x, k] = m + V\frac{\alpha\Lambda r}{v}, \qquad
          p(k|x) \propto w_k \prod_j v_j^{-1/2} e^{-r_j^2/2v_j},

and the marginal score and :math:`E[z|x]` are their means under :math:`p(k|x)`.

The truth of an ODE is its endpoint by dopri8 at tolerances of 1e-8 and below, in float64. Any path
is the linear one seen at another pace: :math:`x_t/(\alpha + \beta)` obeys the linear path's ODE in
:math:`u = \alpha/(\alpha + \beta)`. So one reference serves every path, from the noise of that
path's beginning (the variance preserving path starts at u = 0.0065, not at 0).

References: Karras et al., https://arxiv.org/abs/2206.00364 (exact denoisers of finite data).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

from fm_diffusers.certify import truth
from fm_diffusers.fields import Field, GaussianMixture
from fm_diffusers.paths import GaussianPath, Linear

#: The bandwidth of kernel mixtures, pixels being in [-1, 1].
BANDWIDTH = 0.1

#: Added to the eigenvalues of covariances; pixels that never change would be points otherwise.
FLOOR = 0.05**2


class KernelMixture(GaussianMixture):
    """A mixture of equal round Gaussians: two matrix products for a field instead of three."""

    def sample_and_score(
        self, path: GaussianPath, x: Tensor, t: float | Tensor, block: int = 2**24
    ) -> tuple[Tensor, Tensor]:
        """Return `E[z|x]` and the score, from the posterior mean of the centres."""
        c, variance = path(t), self.stds[0] ** 2
        logits = c.alpha * (x @ self.means.T) - c.alpha**2 * self.norms
        v = c.alpha**2 * variance + c.beta**2
        mean = (self.weights.log() + logits / v).softmax(1) @ self.means
        score = (c.alpha * mean - x) / v
        return mean - c.alpha * variance * score, score

    @property
    def norms(self) -> Tensor:
        """Half the squared norms of the centres."""
        return self.means.square().sum(1) / 2


@dataclass(frozen=True)
class FullMixture:
    r"""Data distributed as :math:`\sum_k w_k N(m_k, V_k \Lambda_k V_k^T)`.

    Attributes:
        means: shape `(components, dim)`, float64.
        variances: eigenvalues, shape `(components, dim)`, positive.
        bases: eigenvectors in columns, shape `(components, dim, dim)`.
        weights: shape `(components,)`, of sum 1.
    """

    means: Tensor
    variances: Tensor
    bases: Tensor
    weights: Tensor

    @classmethod
    def of(cls, data: Tensor, labels: Tensor, floor: float = FLOOR) -> "FullMixture":
        """Fit one Gaussian to each class of `data`, shape `(n, dim)`."""
        parts = [data[labels == k] for k in labels.unique()]
        eigen = [torch.linalg.eigh(part.T.cov()) for part in parts]
        return cls(
            torch.stack([part.mean(0) for part in parts]),
            torch.stack([e.eigenvalues.clamp(min=0) + floor for e in eigen]),
            torch.stack([e.eigenvectors for e in eigen]),
            torch.tensor([len(part) / len(data) for part in parts], dtype=data.dtype),
        )

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` data points."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        scaled = self.variances[k].sqrt() * noise
        return self.means[k] + (self.bases[k] @ scaled[..., None])[..., 0]

    def sample_and_score(
        self, path: GaussianPath, x: Tensor, t: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `E[z|x]` and the score at `x`, shape `(batch, dim)`; `t` is a scalar."""
        c = path(t)
        shift = torch.einsum("kd,kde->ke", self.means, self.bases)
        r = torch.einsum("bd,kde->bke", x, self.bases) - c.alpha * shift
        v = c.alpha**2 * self.variances + c.beta**2
        p = (self.weights.log() - (r.square() / v + v.log()).sum(2) / 2).softmax(1)
        pull = p[..., None] * r / v
        score = -torch.einsum("bke,kde->bd", pull, self.bases)
        inward = torch.einsum("bke,kde->bd", c.alpha * self.variances * pull, self.bases)
        return p @ self.means + inward, score

    #: `field(path, prediction)`, finite for every t in [0, 1], as every exact mixture has it.
    field = GaussianMixture.field


@dataclass(frozen=True)
class Problem:
    """Data with exact fields, and the truth about its ODE.

    Attributes:
        name: what the data are, for tables and pictures.
        data: the distribution, with `field(path, prediction)` and `sample(n, generator)`.
        tolerance: relative and absolute, of the reference.
        share: how many samples are drawn for each that a benchmark asks for.
    """

    name: str
    data: GaussianMixture | FullMixture
    tolerance: float = 1e-8
    share: float = 1.0

    def field(self, path: GaussianPath, prediction: str = "velocity") -> Field:
        """Return the exact marginal field."""
        return self.data.field(path, prediction)

    def start(self, n: int, seed: int) -> Tensor:
        """Return standard normal noise for `n` samples, or the problem's share of them."""
        generator = torch.Generator().manual_seed(seed)
        shape = round(self.share * n), self.data.means.shape[1]
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def reference(
        self, noise: Tensor, path: GaussianPath | None = None, cache: Path | None = None
    ) -> Tensor:
        r"""Return the converged endpoint of the ODE that starts at :math:`\beta_0` noise.

        Args:
            noise: what `start` returned.
            path: the path whose t = 0 is the beginning; by default the linear one.
            cache: a folder that keeps references by the content of what defines them.
        """
        c = (path or Linear())(0.0)
        start, x = (c.alpha / (c.alpha + c.beta)).item(), c.beta / (c.alpha + c.beta) * noise
        key = hashlib.sha256(repr((self.name, start, self.tolerance)).encode())
        for tensor in (self.data.means, noise):
            key.update(tensor.numpy().tobytes())
        file = Path(cache, f"{key.hexdigest()[:16]}.pt") if cache else None
        if file and file.exists():
            return torch.load(file)
        end = self._solve(x, start)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(end, file)
        return end

    def _solve(self, x: Tensor, start: float) -> Tensor:
        velocity = self.field(Linear())
        times = torch.tensor([start, 1.0], dtype=torch.float64)
        tolerance = {"rtol": self.tolerance, "atol": self.tolerance}
        return odeint(lambda t, x: velocity(x, t), x, times, method="dopri8", **tolerance)[-1]


@lru_cache
def load_images(folder: str | None, count: int, subset: int = 0) -> tuple[Tensor, Tensor]:
    """Return `count` images in [-1, 1], shape `(count, size, size)`, and their classes.

    Args:
        folder: a folder in the format of `datasets` with the columns `image` and `label`, or None
            for scikit-learn's digits.
        count: how many; all if there are fewer.
        subset: where in a fixed order they begin, in quarters of all images.
    """
    if folder is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels, labels, white = digits.images, digits.target, 16
    else:
        from datasets import load_dataset

        data = load_dataset(folder, split="train")
        pixels, labels, white = data["image"], np.asarray(data["label"]), 255
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = np.roll(order, -subset * (len(order) // 4))[:count]
    images = np.stack([np.asarray(pixels[int(i)], dtype=np.float64) for i in chosen])
    return torch.from_numpy(images) * (2 / white) - 1, torch.from_numpy(labels[chosen])


def _pooled(images: Tensor, mnist: str | None) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 2) if mnist else images


def _kernels(images: Tensor) -> KernelMixture:
    return KernelMixture(images.flatten(1), BANDWIDTH)


def modes(mnist: str | None, seed: int) -> Problem:
    """Eight modes in the plane."""
    return Problem("eight modes in the plane", truth.modes(seed), tolerance=1e-10, share=8)


def images(mnist: str | None, seed: int) -> Problem:
    """Kernels at 3,000 images of MNIST, or 1,200 digits."""
    found, _ = load_images(mnist, 4500 if mnist else 1797, seed)
    return Problem("images learned by heart", _kernels(found[: 3000 if mnist else 1200]))


def classes(mnist: str | None, seed: int) -> Problem:
    """A Gaussian for each class of 14 x 14 images of MNIST, or of 8 x 8 digits."""
    found, labels = load_images(mnist, 10_000, seed)
    data = FullMixture.of(_pooled(found, mnist).flatten(1), labels)
    return Problem("Gaussians of the classes", data, share=0.5)


def small_images(mnist: str | None, seed: int) -> Problem:
    """Kernels at images that are not in `images`: 1,500 of 14 x 14, or 597 digits of 8 x 8."""
    found, _ = load_images(mnist, 4500 if mnist else 1797, seed)
    kernels = _kernels(_pooled(found[3000 if mnist else 1200 :], mnist))
    return Problem("small images learned by heart", kernels)


#: The problems as they are asked for: functions of the MNIST folder (None is digits) and the seed
#: of the mixture or the subset of the images.
PROBLEMS: dict[str, Callable[[str | None, int], Problem]] = {
    row.__name__: row for row in (modes, images, classes, small_images)
}
