"""Exact networks in other projects' own conventions.

Each is the posterior mean of known data, written out in its project's time, sign, scale and order
of arguments. Data of class k are Gaussian, data without a class the mixture of both.
"""

import math

import torch
from torch import nn

from fm_diffusers.fields import GaussianMixture
from fm_diffusers.paths import Coefficients

SHAPE, CLASSES, NULL = (1, 4, 4), 2, 2
MEANS = torch.tensor([-0.6, 0.8], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5], dtype=torch.float64)
OF_CLASS = [GaussianMixture(m.expand(1, *SHAPE), s) for m, s in zip(MEANS, STDS, strict=True)]
OF_ALL = GaussianMixture(MEANS.reshape(2, 1, 1, 1).expand(2, *SHAPE), STDS)
DATA = [*OF_CLASS, OF_ALL]

# --- the projects' conventions -------------------------------------------------------------------


def variance_preserving(t, beta_min=0.1, beta_max=20.0):
    """The logarithm of alpha is -(1-t)^2 (beta_max - beta_min)/4 - (1-t) beta_min/2."""
    log_alpha = -((1 - t) ** 2) * (beta_max - beta_min) / 4 - (1 - t) * beta_min / 2
    rate = (1 - t) * (beta_max - beta_min) / 2 + beta_min / 2
    alpha, beta = log_alpha.exp(), (1 - (2 * log_alpha).exp()).sqrt()
    return alpha, beta, alpha * rate, -(alpha**2) * rate / beta


def cosine(t):
    angle, rate = math.pi / 2 * t, math.pi / 2
    return angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin()


COEFFICIENTS = {
    "Linear": lambda t: (t, 1 - t, 1, -1),
    "CondOT": lambda t: (t, 1 - t, 1, -1),
    "GVP": cosine,
    "Cosine": cosine,
    "VP": variance_preserving,
    "Polynomial": lambda t: (t**3, 1 - t**3, 3 * t**2, -3 * t**2),
}


class Exact(nn.Module):
    """Knows the data; remembers what it was fed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("dummy", torch.zeros(1, dtype=torch.float64))
        self.fed, self.labels = [], []

    def z_and_eps(self, x, alpha, beta, labels):
        """Return both posterior means for labels of shape `(batch,)`, or for none."""
        self.labels.append(labels)
        labels = torch.full(x.shape[:1], NULL) if labels is None else labels
        z, score = torch.zeros_like(x), torch.zeros_like(x)
        for k in labels.unique().tolist():
            part = labels == k
            z[part], score[part] = DATA[k].sample_and_score(
                lambda t: Coefficients(alpha, beta, None, None), x[part], 0.0
            )
        return z, -beta * score

    def velocity(self, path, x, t, labels):
        self.fed.append(t)
        alpha, beta, d_alpha, d_beta = COEFFICIENTS[path](t.reshape(-1)[0].double())
        z, eps = self.z_and_eps(x, alpha, beta, labels)
        return d_alpha * z + d_beta * eps


class SiT(Exact):
    def __init__(self, path, prediction):
        super().__init__()
        self.path, self.prediction = path, prediction

    def forward(self, x, t, y=None):
        velocity = self.velocity(self.path, x, t, y)
        alpha, beta, *_ = COEFFICIENTS[self.path](t[0].double())
        eps = self.z_and_eps(x, alpha, beta, y)[1]
        q = {"velocity": velocity, "noise": eps, "score": -eps / beta}[self.prediction]
        return torch.cat([q, torch.full_like(q, 1e9)], 1)


class Meta(Exact):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, *, t, x, label=None):
        return self.velocity(self.path, x, t, label)


class TorchCFM(Exact):
    def forward(self, t, x, y=None):
        return self.velocity("Linear", x, t, y)


class Denoiser(Exact):
    """D(x; sigma) of `x = z + sigma eps`, with one-hot labels."""

    def forward(self, x, sigma, class_labels=None):
        self.fed.append(sigma)
        labels = class_labels
        if class_labels is not None:
            none = (class_labels == 0).all(1)
            assert class_labels.shape == (len(x), CLASSES) and class_labels.is_floating_point()
            labels = torch.where(none, NULL, class_labels.argmax(1))
        return self.z_and_eps(x, torch.tensor(1.0).double(), sigma[0].double(), labels)[0]


class Raw(Exact):
    """F with D = c_skip x + c_out F(c_in x; ln(sigma)/4), for data of standard deviation 0.7."""

    def __init__(self):
        super().__init__()
        self.denoiser = Denoiser()

    def forward(self, x, c_noise, class_labels):
        self.fed.append(c_noise)
        sigma, std = (4 * c_noise).exp(), 0.7
        total = (sigma[0] ** 2 + std**2).sqrt()
        x = x * total
        clean = self.denoiser(x, sigma, class_labels)
        return (clean - std**2 / total**2 * x) / (sigma[0] * std / total)
