"""Any order of calls: a step is what its place says, and nothing else is remembered."""

import copy
import json
import pickle
import tempfile

import pytest
import torch
from drawing import cases, configurations
from exact_runs import Gaussian, first_sample, network, planned, scheduler_of
from hypothesis import strategies as st

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.scheduling.frozen import public

NOISE = torch.tensor([[-1.5, 0.3], [0.25, -0.4]], dtype=torch.float64)

#: How a loop names a timestep of the plan.
AS = {
    "element": lambda ts, j: ts[j],
    "number": lambda ts, j: ts[j].item(),
    "clone": lambda ts, j: ts[j].clone(),
    "double": lambda ts, j: ts[j : j + 1].double(),
    "expanded": lambda ts, j: ts[j].clone().expand(2),
}


def by_pickle(scheduler):
    return pickle.loads(pickle.dumps(scheduler))


def by_json(scheduler):
    return GaussianFlowScheduler.from_config(json.loads(scheduler.to_json_string()))


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": by_pickle}
MADE_ANEW = {
    "config": lambda scheduler: GaussianFlowScheduler.from_config(scheduler.config),
    "json": by_json,
    "twice": lambda scheduler: by_json(by_json(scheduler)),
}

JUMPS = st.tuples(st.just("step at"), st.integers(0, 9), st.sampled_from(list(AS)))
ASKED = st.tuples(
    st.sampled_from(["scale_model_input", "add_noise", "get_velocity", "index_for_timestep"]),
    st.integers(0, 9),
    st.none(),
)
OTHERS = st.tuples(
    st.sampled_from([*COPIES, "set_timesteps", "begin", "back", "own times", "wrong"]),
    st.integers(0, 9),
    st.none(),
)
STEPS = st.tuples(st.just("step"), st.just(0), st.sampled_from(list(AS)))
CALLS = st.lists(st.one_of(STEPS, STEPS, JUMPS, ASKED, OTHERS), min_size=2, max_size=8)


def outcome(make):
    """Return what a call makes, or the type of its error, which is a `ValueError`."""
    try:
        return make()
    except ValueError:
        return ValueError


class Run:
    """A scheduler, and beside it the place where it should be, for a pure `transition`."""

    def __init__(self, scheduler, pure, seed=0):
        self.scheduler, self.pure, self.data = scheduler, pure, Gaussian()
        self.x = first_sample(pure, self.data, NOISE)
        self.place, self.before, self.begin, self.seed = None, None, None, seed

    def expected_index(self):
        going = self.place is not None and self.place.index < len(self.pure.timesteps)
        return self.place.index if going else self.begin or 0

    def step(self, name, goes_on, j=None):
        """Step both; they raise together, or make the same, bit for bit.

        Each is given a timestep by its own `timesteps`, whose elements are known by their place.
        """
        t, own = (name(one.timesteps) for one in (self.scheduler, self.pure))
        told = {"advance": self.pure.advance(own)} if self.pure.is_flow_map else {}
        q = torch.sin(3 * self.x) + 0.2  # of no data: nothing may depend on what the network is
        place = self.place if goes_on else None
        if goes_on and (place is None or place.index >= len(self.pure.timesteps)):
            place = outcome(lambda: self.pure.first_place(2, index=self.expected_index()))
        self.seed += 1
        noise = [torch.Generator().manual_seed(self.seed) for _ in range(2)]
        found = outcome(
            lambda: self.scheduler.step(q, t, self.x, generator=noise[0], **told).prev_sample
        )
        wanted = outcome(lambda: self.pure.transition(q, own, self.x, place=place, **told))
        if wanted is ValueError or found is ValueError:
            assert wanted is found, (wanted, found)
            return
        assert torch.equal(found, wanted.sample(noise[1]))
        self.before = place
        if place is None and j is not None:  # another start of an interval, or a time in one
            began = outcome(lambda: self.pure.first_place(2, index=j))
            self.before = None if began is ValueError else began
        self.x, self.place = found.clamp(-9, 9), wanted.place

    def back(self, index):
        """Put the index back by one: to the place before the last step, or nothing remembered."""
        place, self.before = self.before, None
        if place is None:
            place = outcome(lambda: self.pure.first_place(2, index=index))
        found = outcome(lambda: setattr(self.scheduler, "step_index", index))
        assert (found is ValueError) == (place is ValueError)
        if place is not ValueError:
            self.place = place

    def call(self, name, number, way):
        n = len(self.pure.timesteps)
        if name in ("step", "step at"):
            at = self.expected_index()
            j = at if name == "step" else number % n
            equal = self.pure.timesteps[j] == self.pure.timesteps[at]
            goes_on = j == at if way == "element" else bool(equal)
            self.step(lambda timesteps: AS[way](timesteps, j), goes_on, j)
        elif name in COPIES:
            self.scheduler = COPIES[name](self.scheduler)
        elif name == "set_timesteps":
            self.scheduler.set_timesteps(len(self.pure._plan.starts), mu=0.5)
            self.place = self.before = self.begin = None
        elif name == "begin":
            at = self.pure._plan.starts[number % len(self.pure._plan.starts)]
            self.scheduler.set_begin_index(at)
            self.place, self.before, self.begin = None, None, at
        elif name == "wrong":
            with pytest.raises(ValueError):
                self.scheduler.step(self.x, float("nan"), self.x)
            with pytest.raises(ValueError):
                self.scheduler.register_to_config(shift=-1.0)
        elif name == "back" and self.place is not None:
            self.back(self.place.index - 1)
        elif name == "own times":
            if not self.pure.is_flow_map:
                two = [number % n, (number + 1) % n]
                self.step(lambda timesteps: timesteps[two], False)
        elif name == "scale_model_input":
            self.scheduler.scale_model_input(self.x, self.scheduler.timesteps[number % n])
        elif name == "index_for_timestep":
            self.scheduler.index_for_timestep(self.scheduler.timesteps[number % n])
        elif name in ("add_noise", "get_velocity"):
            t = self.scheduler.timesteps[number % n]
            getattr(self.scheduler, name)(self.x, NOISE, t)
        assert torch.equal(self.scheduler.timesteps, self.pure.timesteps)


@cases(
    configurations(without=("noise", "carry_rounding"), most=1),
    st.sampled_from([1, 2, 3, 5]),
    CALLS,
    fast=160,
    slow=20_000,
)
def test_calls_in_any_order_are_those_of_a_pure_transition(config, n, calls):
    scheduler = scheduler_of(config)
    if scheduler is None or not planned(scheduler, num_inference_steps=n, mu=0.5):
        return
    if scheduler.is_flow_map and scheduler.solver.noisy:
        return
    pure = GaussianFlowScheduler(**config)
    pure.set_timesteps(n, mu=0.5)
    run = Run(scheduler, pure)
    for call in calls:
        run.call(*call)


@cases(
    configurations(most=3),
    st.sampled_from([*COPIES, *MADE_ANEW]),
    st.sampled_from([1, 2, 4]),
    fast=200,
    slow=12_000,
)
def test_a_scheduler_made_from_another_is_the_same(config, way, n):
    one = scheduler_of(config)
    if one is None:
        return
    other = {**COPIES, **MADE_ANEW}[way](one)
    assert public(other.config) == public(one.config)
    assert torch.equal(other.timesteps, one.timesteps) and torch.equal(other.sigmas, one.sigmas)
    if not planned(one, num_inference_steps=n, mu=0.5):
        assert not planned(other, num_inference_steps=n, mu=0.5)
        return
    assert planned(other, num_inference_steps=n, mu=0.5)
    assert torch.equal(other.timesteps, one.timesteps) and torch.equal(other.sigmas, one.sigmas)
    data, ends = Gaussian(), []
    for scheduler in (one, other):
        x, noise = first_sample(one, data, NOISE), torch.Generator().manual_seed(1)
        ask = network(one, data)
        for t in scheduler.timesteps:
            told = {"advance": scheduler.advance(t)} if scheduler.is_flow_map else {}
            x = scheduler.step(torch.sin(x), t, x, generator=noise, **told).prev_sample
        ends.append((x, ask))
    assert torch.equal(ends[0][0], ends[1][0])


@cases(configurations(most=3), fast=20, slow=1_000, shards=1)
def test_a_saved_scheduler_is_the_same(config):
    one = scheduler_of(config)
    if one is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        one.save_pretrained(folder)
        other = GaussianFlowScheduler.from_pretrained(folder)
    assert public(other.config) == public(one.config)
    if planned(one, num_inference_steps=3, mu=0.5):
        other.set_timesteps(3, mu=0.5)
        assert torch.equal(other.timesteps, one.timesteps)
        assert other._plan.rows == one._plan.rows
