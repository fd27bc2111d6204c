"""Numbers of steps: what they are, where they contradict each other, and the rates they give."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fm_diffusers.training.arguments import SCHEDULES, TrainingArguments
from fm_diffusers.training.steps import ENDLESS, Steps, plan_steps

#: An epoch of ten batches.
LOADER = DataLoader(TensorDataset(torch.arange(40)), 4)
QUIET = {"logging_steps": 1, "validation_steps": 1, "checkpointing_steps": 1}


def plan(loader=LOADER, **kwargs):
    return plan_steps(TrainingArguments(**QUIET | kwargs), loader)


def rates(steps, **kwargs):
    """Return the factor of the learning rate at each step of a run."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, found = steps.rate(TrainingArguments(**kwargs), optimizer), []
    for _ in range(steps.run):
        found += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, Steps(100, 0, 100)),  # ten epochs, too short for a warm-up of 200
        ({"num_train_epochs": 40}, Steps(400, 200, 400)),
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 4}, Steps(9, 0, 9)),
        ({"max_train_steps": 20, "lr_warmup_steps": 5}, Steps(20, 5, 20)),
        ({"max_train_steps": 20, "lr_scheduler_steps": 40}, Steps(20, 0, 40)),
        ({"max_train_steps": 20, "lr_scheduler_steps": 40, "lr_warmup_steps": 30}, None),
        ({"max_train_steps": 400, "lr_scheduler": "constant"}, Steps(400, 0, 400)),
        ({"max_train_steps": 30, "num_train_epochs": 3}, Steps(30, 0, 30)),  # they agree
    ],
)
def test_a_run_is_as_long_as_it_is_asked_to_be(kwargs, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan(**kwargs) == (expected or Steps(20, 30, 40))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(40))


def test_a_stream_has_no_epochs():
    stream = DataLoader(Endless(), 4)
    assert plan(stream, max_train_steps=50) == Steps(50, 0, 50)
    with pytest.warns(UserWarning, match="--max_train_steps 50 is what counts, not --num_train"):
        plan(stream, max_train_steps=50, num_train_epochs=2)
    with pytest.raises(ValueError, match="set --max_train_steps"):
        plan(stream, num_train_epochs=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"max_train_steps": 20, "lr_scheduler": "constant", "lr_warmup_steps": 5},
            "constant has no warm-up, got --lr_warmup_steps 5: say --lr_scheduler constant_with",
        ),
        (
            {"max_train_steps": 20, "lr_scheduler_steps": 19},
            "--lr_scheduler_steps 19 end before the 20 steps of the run",
        ),
        (
            {"gradient_accumulation_steps": 11},
            "--gradient_accumulation_steps 11 exceed the 10 batches of an epoch",
        ),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        plan(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"max_train_steps": 20, "num_train_epochs": 3},
            "--max_train_steps 20 is what counts, not --num_train_epochs 3, which are 30 steps",
        ),
        (
            {"max_train_steps": 20, "validation_steps": 21, "checkpointing_steps": 1000},
            "--validation_steps 21, --checkpointing_steps 1000 lie beyond the 20 steps of the run",
        ),
        ({"max_train_steps": 20, "logging_steps": 50}, "--logging_steps 50 lie beyond the 20"),
    ],
)
def test_numbers_that_are_honoured_in_another_way_are_told(kwargs, message):
    with pytest.warns(UserWarning, match=message):
        plan(**kwargs)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_part_of_a_schedule_has_the_rates_of_the_whole(name):
    given = {"lr_scheduler": name}
    given |= {} if name == "constant" else {"lr_warmup_steps": 4}
    whole = rates(plan(max_train_steps=40, **given), **given)
    part = rates(plan(max_train_steps=20, lr_scheduler_steps=40, **given), **given)
    alone = rates(plan(max_train_steps=20, **given), **given)
    assert part == whole[:20]
    assert (alone == part) == (name in ENDLESS)
    assert max(whole) == 1.0


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
@pytest.mark.parametrize(("given", "run", "taken"), [(200, 20, 2), (20, 20, 2), (2, 2, 0)])
def test_a_warmup_that_is_too_long_is_a_tenth_and_the_rate_reached(name, given, run, taken):
    kwargs = {"lr_scheduler": name, "max_train_steps": run, "lr_warmup_steps": given}
    with pytest.warns(UserWarning, match=f"the warm-up is {taken} steps, a tenth. Choose fewer"):
        steps = plan(**kwargs)
    assert steps == Steps(run, taken, run)
    assert max(rates(steps, **kwargs)) == 1.0


def test_the_average_never_looks_back_beyond_the_run():
    """The decay after n steps is at most (1 + n)/(10 + n): no step count contradicts it."""
    from diffusers.training_utils import EMAModel

    weight = torch.zeros(1, requires_grad=True)
    ema = EMAModel([weight], decay=0.9999)
    with torch.no_grad():
        weight.fill_(1.0)
    for _ in range(20):
        ema.step([weight])
    assert ema.shadow_params[0].item() == 1.0  # the first weights have gone with the first step
