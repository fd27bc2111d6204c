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
    "LinearVP": lambda t: (t, (1 - t**2).sqrt(), 1, -t / (1 - t**2).sqrt()),
    "linear": lambda t: (t, 1 - t, 1, -1),
    "cosine": cosine,
}

#: The standard deviation of the blur, or what is left of the noise, with which a matcher trains.
SIGMA = 0.3


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
        alpha, beta, d_alpha, d_beta = COEFFICIENTS[path](t[0].double())
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


class REPA(Exact):
    """Time runs from 1 to 0, and features come after the prediction."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x, tau, y=None):
        return -self.velocity(self.path, x, 1 - tau, y), [torch.zeros(len(x), 3, 5)]


class MeanFlow(Exact):
    def forward(self, x, r, t, y=None):
        assert torch.equal(r, t)
        return -self.velocity("linear", x, 1 - t, y)


class Meta(Exact):
    def __init__(self, path, prediction="velocity"):
        super().__init__()
        self.path, self.prediction = path, prediction

    def forward(self, *, t, x, label=None):
        t = t.expand(len(x))  # their solver feeds one for all
        velocity = self.velocity(self.path, x, t, label)
        alpha, beta, *_ = COEFFICIENTS[self.path](t[0].double())
        z, eps = self.z_and_eps(x, alpha, beta, label)
        return {"velocity": velocity, "target": z, "epsilon": eps}[self.prediction]


class TorchCFM(Exact):
    """The regression of a matcher's flow between noise x0 and data x1, `sigma` given."""

    def __init__(self, matcher="ConditionalFlowMatcher", sigma=0.0):
        super().__init__()
        self.matcher, self.sigma = matcher, sigma

    def forward(self, t, x, y=None):
        self.fed.append(t)
        s, sigma = t[0].double(), self.sigma
        if self.matcher == "TargetConditionalFlowMatcher":
            beta = 1 - (1 - sigma) * s
            z, _ = self.z_and_eps(x, s, beta, y)
            return (z - (1 - sigma) * x) / beta
        angle = math.pi / 2 * s
        a, b, da, db = {
            "ConditionalFlowMatcher": (s, 1 - s, 1, -1),
            "VariancePreservingConditionalFlowMatcher": (
                angle.sin(),
                angle.cos(),
                math.pi / 2 * angle.cos(),
                -math.pi / 2 * angle.sin(),
            ),
        }[self.matcher]
        z, _ = self.z_and_eps(x, a, (b**2 + sigma**2).sqrt(), y)
        # of what is not data, b x0 + sigma xi, the share of the variance that is x0's
        x0 = b / (b**2 + sigma**2) * (x - a * z) if sigma else self.z_and_eps(x, a, b, y)[1]
        return da * z + db * x0


class Coupled(Exact):
    """A matcher by optimal transport, for data of one class: everything is jointly Gaussian.

    Along a jointly Gaussian interpolation E[dx/dt | x] = m' + v'/(2v) (x - m), with the mean m and
    the variance v of x at each time. `covariance` is that of noise and data.
    """

    def __init__(self, covariance, blur, bridge):
        super().__init__()
        self.covariance, self.blur, self.bridge = covariance, blur, bridge

    def forward(self, t, x, y):
        self.fed.append(t)
        mean, std = (v[y].reshape(-1, 1, 1, 1) for v in (MEANS, STDS))
        s, cov = t[0].double(), self.covariance * std
        v = s**2 * std**2 + (1 - s) ** 2 + 2 * s * (1 - s) * cov
        dv = 2 * s * std**2 - 2 * (1 - s) + 2 * (1 - 2 * s) * cov
        v = v + self.blur**2 * (s * (1 - s) if self.bridge else 1)
        dv = dv + self.blur**2 * ((1 - 2 * s) if self.bridge else 0)
        return mean + dv / (2 * v) * (x - s * mean)


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
