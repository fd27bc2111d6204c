import itertools
import math
import sys

import pytest
import torch
from oracles import mixture
from scipy.optimize import linear_sum_assignment

from fm_diffusers.couplings import CANDIDATES, COUPLINGS, couple
from fm_diffusers.paths import Linear

pytest.importorskip("ot", reason="couplings need POT: pip install .[ot]")

NAMES = list(COUPLINGS)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n, *shape, seed=0):
    """Return data of two lumps and standard normal noise."""
    generator = rng(seed)
    z = 0.3 * torch.randn(n, *shape, generator=generator)
    z += 2 * torch.randint(2, (n, *[1] * len(shape)), generator=generator) - 1
    return z, torch.randn(n, *shape, generator=generator)


def cost(z, eps):
    return (z.double() - eps.double()).square().sum().item()


def order(eps, coupled):
    """Return the index in `eps` of each coupled noise."""
    return (coupled.flatten(1)[:, None] == eps.flatten(1)).all(-1).int().argmax(1)


@pytest.mark.parametrize("condition", [None, "labels", "codes"])
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_every_noise_is_used_exactly_once(name, shape, condition):
    z, eps = batch(24, *shape)
    given = {"labels": torch.arange(24) % 3, "codes": torch.randn(24, 5, generator=rng(1))}
    coupled = couple(z, eps, name, given.get(condition), rng())
    assert coupled.dtype == eps.dtype and coupled.shape == eps.shape
    assert order(eps, coupled).sort().values.tolist() == list(range(24))


def test_independent_leaves_the_noise_as_it_is():
    z, eps = batch(24, 2)
    assert torch.equal(couple(z, eps), eps)


@pytest.mark.parametrize("n", range(1, 7))
def test_optimal_transport_is_the_best_of_all_permutations(n):
    z, eps = batch(n, 3, seed=n)
    best = min(cost(z, eps[list(p)]) for p in itertools.permutations(range(n)))
    assert cost(z, couple(z, eps, "optimal_transport")) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("n", [64, 200])
def test_optimal_transport_costs_what_the_assignment_problem_costs(n):
    z, eps = batch(n, 1, 8, 8)
    distances = (z.double()[:, None] - eps.double()).flatten(2).square().sum(2)
    rows, columns = linear_sum_assignment(distances)
    best = distances[rows, columns].sum().item()
    assert cost(z, couple(z, eps, "optimal_transport")) == pytest.approx(best, rel=1e-12)
    assert best < 0.99 * cost(z, eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_one_dimension_optimal_transport_sorts(dtype):
    z, eps = (x.to(dtype) for x in batch(100, 1))
    coupled = couple(z, eps, "optimal_transport")
    assert coupled.dtype == dtype
    best = cost(z.sort(0).values, eps.sort(0).values)
    assert cost(z, coupled) == pytest.approx(best, rel=1e-12)
    if dtype == torch.float64:  # in half precision equal data may take their noise in any order
        assert torch.equal(coupled[z.flatten().argsort()], eps.sort(0).values)


def test_sinkhorn_goes_from_optimal_transport_to_a_random_order():
    z, eps = batch(16, 2)

    def mean_cost(scale, draws=40):
        generators = map(rng, range(draws))
        drawn = (couple(z, eps, "sinkhorn", None, g, regularization=scale) for g in generators)
        return sum(cost(z, noise) for noise in drawn) / draws

    optimal = cost(z, couple(z, eps, "optimal_transport"))
    random = torch.cdist(z.double(), eps.double()).square().mean().item() * 16  # over all orders
    costs = [mean_cost(0.01, 10), mean_cost(0.1), mean_cost(1.0), mean_cost(1e4, 500)]
    assert costs[0] == pytest.approx(optimal, rel=0.01)
    assert costs[-1] == pytest.approx(random, rel=0.02)
    assert costs == sorted(costs)


def test_a_large_regularization_draws_every_order_alike():
    z, eps = batch(3, 2)
    generator, counts = rng(), {}
    for _ in range(3000):
        coupled = couple(z, eps, "sinkhorn", generator=generator, regularization=1e6)
        key = tuple(order(eps, coupled).tolist())
        counts[key] = counts.get(key, 0) + 1
    chi_squared = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert len(counts) == 6 and chi_squared < 20.5  # 0.1 % with 5 degrees of freedom


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_decides_and_other_generators_do_not(name):
    z, eps = batch(64, 2)
    torch.manual_seed(1)
    first = couple(z, eps, name, generator=rng(7))
    torch.manual_seed(2)
    assert torch.equal(first, couple(z, eps, name, generator=rng(7)))
    same = torch.equal(first, couple(z, eps, name, generator=rng(8)))
    assert same == (name != "sinkhorn")


@pytest.mark.parametrize("name", NAMES)
def test_noise_stays_inside_its_class(name):
    z, eps = batch(60, 2)
    labels = torch.randint(4, (60,), generator=rng(3))
    labels[0] = 9  # a class of one
    coupled = couple(z, eps, name, labels, rng())
    assert torch.equal(labels[order(eps, coupled)], labels)
    assert torch.equal(coupled[0], eps[0])


@pytest.mark.parametrize("n", [20, 60])
def test_costs_with_labels_lie_between_the_optimum_and_independence(n):
    for seed in range(20):
        z, eps = batch(n, 2, seed=seed)
        labels = torch.randint(3, (n,), generator=rng(seed))
        best, classed, independent = (
            cost(z, couple(z, eps, *arguments))
            for arguments in (
                ("optimal_transport",), ("optimal_transport", labels), ("independent",)
            )
        )  # fmt: skip
        assert best <= classed < independent


def test_labels_keep_the_noise_independent_of_the_class():
    """Given the class the noise has mean 0 and variance 1; plain optimal transport skews both."""
    classed, plain, classes = [], [], []
    for seed in range(60):
        z, eps = batch(64, 1, seed=seed)
        labels = (z.flatten() > 0).long()
        classed.append(couple(z, eps, "optimal_transport", labels))
        plain.append(couple(z, eps, "optimal_transport"))
        classes.append(labels)
    upper = torch.cat(classes) == 1
    n = upper.sum().item()
    for noise in (torch.cat(classed)[upper], torch.cat(classed)[~upper]):
        assert abs(noise.mean().item()) < 3.5 / math.sqrt(len(noise))
        assert abs(noise.var().item() - 1) < 3.5 * math.sqrt(2 / len(noise))
    skewed = torch.cat(plain)[upper]
    assert abs(skewed.mean().item()) > 20 / math.sqrt(n)
    # the upper half of a standard normal has the mean sqrt(2/pi)
    assert skewed.mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.05)


def test_codes_are_between_no_condition_and_labels():
    """Without weight they do nothing; codes of classes, weighted heavily, keep classes apart."""
    z, eps = batch(40, 2)
    labels = torch.arange(40) % 4
    codes = torch.nn.functional.one_hot(labels).double()
    free, apart = (
        couple(z, eps, "optimal_transport", codes, condition_weight=w) for w in (0.0, 1e6)
    )
    assert torch.equal(free, couple(z, eps, "optimal_transport"))
    assert torch.equal(apart, couple(z, eps, "optimal_transport", labels))


def test_the_weight_of_codes_leaves_one_pair_in_a_hundred_cheaper():
    """The chosen weight is that at which exactly the share of candidates crosses 1 %."""
    z, eps = batch(50, 2)
    codes = torch.randn(50, 3, generator=rng(4)).double()
    distances = (z.double()[:, None] - eps.double()).square().sum(-1)
    between = (codes[:, None] - codes).square().sum(-1)

    def share(w):
        cheaper = distances + w * between < distances.diagonal()[:, None]
        return cheaper.sum().item() / (50 * 49)

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > CANDIDATES else (low, middle)
    chosen = couple(z, eps, "optimal_transport", codes)
    assert torch.equal(chosen, couple(z, eps, "optimal_transport", codes, condition_weight=high))
    assert cost(z, couple(z, eps, "optimal_transport")) < cost(z, chosen) < cost(z, eps)


def test_codes_correlate_less_with_the_noise_the_heavier_they_weigh():
    """A code that is the data's coordinate: its correlation with the noise falls to 0 with w."""
    correlations = []
    for w in (0.0, 1.0, 10.0, 1e4):
        codes, noise = [], []
        for seed in range(30):
            z, eps = batch(64, 1, seed=seed)
            codes.append(z)
            noise.append(couple(z, eps, "optimal_transport", z, condition_weight=w))
        pair = torch.cat([torch.cat(codes), torch.cat(noise)], 1)
        correlations.append(torch.corrcoef(pair.T)[0, 1].item())
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] > 0.8 and abs(correlations[-1]) < 4 / math.sqrt(30 * 64)


def test_optimal_transport_lowers_the_cost_of_a_mixture_with_the_batch():
    """Mean cost per pair falls to the Wasserstein distance; endpoints keep their laws."""
    data, costs = mixture(dim=2), {}
    for n in (1, 8, 64, 256):
        z = data.sample(1024, rng())
        eps = torch.randn(1024, 2, generator=rng(1), dtype=torch.float64)
        pairs = zip(z.split(n), eps.split(n), strict=True)
        coupled = torch.cat([couple(a, b, "optimal_transport") for a, b in pairs])
        costs[n] = cost(z, coupled) / 1024
        assert torch.equal(coupled.sort(0).values, eps.sort(0).values)
    assert costs[1] == cost(z, eps) / 1024
    values = list(costs.values())
    assert values == sorted(values, reverse=True) and values[-1] < 0.5 * values[0]


def test_optimal_transport_straightens_the_marginal_paths():
    r"""Two lumps in one dimension: :math:`E\,Var(z - eps | x_t)`, 0 for straight paths, falls.

    The variance of the target at a given x_t is what no field can learn, estimated in bins of x_t.
    """
    irreducible = {}
    for name in ("independent", "optimal_transport"):
        xs, us = [], []
        for seed in range(100):
            z, eps = batch(128, 1, seed=seed)
            eps = couple(z, eps, name)
            xs.append(Linear().flow_map(z, eps, 0.5))
            us.append(z - eps)
        ranks = torch.cat(xs).flatten().argsort()
        bins = torch.cat(us).flatten()[ranks].reshape(128, 100)
        irreducible[name] = bins.var(1).mean().item()
    assert irreducible["optimal_transport"] < 0.1 * irreducible["independent"]


def test_the_score_does_not_follow_from_a_coupled_field():
    """Gaussian data: coupled, x_t = (t s + 1 - t) eps, and E[eps|x] is not -beta score."""
    s, t, generator = 0.5, 0.5, rng()
    z = s * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(2000, 1, generator=generator, dtype=torch.float64)

    def slopes(eps):
        x = Linear().flow_map(z, eps, t)
        predicted = (x * eps).mean() / x.square().mean()  # of E[eps|x], linear here
        return predicted.item(), ((1 - t) / x.var()).item()  # and of -beta score

    predicted, from_score = slopes(couple(z, eps, "independent"))
    assert predicted == pytest.approx(from_score, rel=0.1)
    predicted, from_score = slopes(couple(z, eps, "optimal_transport"))
    assert predicted == pytest.approx(1 / (t * s + 1 - t), rel=0.02)
    assert from_score == pytest.approx((1 - t) / (t * s + 1 - t) ** 2, rel=0.1)


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)  # which makes its import fail
    x = torch.zeros(2, 1)
    couple(x, x)
    with pytest.raises(
        ImportError, match=r"this coupling needs POT: pip install fm_diffusers\[ot"
    ):
        couple(x, x, "sinkhorn")


FLOAT, LONG = torch.zeros(4), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eps": torch.zeros(4, 2)}, r"one shape \(batch, ...\), got \(4, 1\) and \(4, 2\)"),
        ({"coupling": "emd"}, "unknown coupling 'emd': choose one of independent"),
        ({"condition": LONG[:3]}, r"integer labels of shape \(4,\).* got torch.int64 of shape"),
        ({"condition": LONG[:, None]}, r"got torch.int64 of shape \(4, 1\)"),
        ({"condition": FLOAT[:3]}, r"floating codes of shape \(4, ...\), got torch.float32"),
        ({"condition_weight": 1.0}, "condition_weight=1.0 is for floating codes"),
        ({"condition": LONG, "condition_weight": 1.0}, "classes are kept apart"),
        ({"condition": FLOAT, "condition_weight": -1.0}, "finite and at least 0, got -1.0"),
        ({"condition": FLOAT}, "equal codes, so that no weight .* give integer labels"),
        ({"coupling": "sinkhorn", "regularization": 0.0}, "regularization must be positive"),
        ({"reg": 0.1}, r"coupling_kwargs \['reg'\] are no parameters of 'optimal_transport'"),
        ({"z": torch.full((4, 1), math.nan)}, "must be finite to be coupled"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    z, eps = batch(4, 1)
    with pytest.raises(ValueError, match=message):
        couple(**({"z": z, "eps": eps, "coupling": "optimal_transport"} | given))
