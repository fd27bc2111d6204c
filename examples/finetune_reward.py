r"""Fine-tune a trained flow by what it draws: raise a reward by Flow-GRPO.

    accelerate launch examples/finetune_reward.py --model outputs/digits --dataset_name digits \
        --reward class --reward_class 3 --unconditional --output_dir outputs/threes

It is `train_mnist.py` with a sampler in place of the data: every batch is drawn by the network as
it is, some groups of images that are asked for alike. Images with more reward than the mean of
their group are made more likely, the others less, by the gradient of the log-probability of the
noisy steps that led to them; the KL divergence from the network at the start, `--kl_weight`, holds
it near. Only `--window_size` steps at a time are noisy and learned from, a window that moves on
from the noise to the data; the others are those of the ODE.

`--reward` is `class`, the probability of a class by a small classifier of `--dataset_name`; `ink`,
the mean brightness; or a function of yours, `module:function`, called with images in [-1, 1],
shape `(n, C, H, W)`, and a list of what each was asked for, which returns `n` numbers.

What is saved is a pipeline, with all weights tuned or, with `--rank`, adapters (LoRA) that are
fused into them and saved beside; samples before and after, the curve of reward and KL, and a card.

References: Liu et al., "Flow-GRPO", https://arxiv.org/abs/2505.05470; Li et al., "MixGRPO",
https://arxiv.org/abs/2507.21802.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import set_seed
from PIL import Image
from reward_curve import Curve
from rewards import Asking, Reward, load_reward
from rollouts import Sampler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_lora import adapt
from train_mnist import train

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.pipelines.lora import lora_layers
from fm_diffusers.rl import group_advantages, group_relative_loss, importance_ratio
from fm_diffusers.rl.dynamics import get_dynamics
from fm_diffusers.training.arguments import (
    ImageArguments,
    TrainingArguments,
    check_output,
    parse,
    start,
)
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.networks import keep_labels
from fm_diffusers.training.pictures import sample_grid
from fm_diffusers.training.public import public
from fm_diffusers.training.publishing import publish
from fm_diffusers.training.pushing import create_repository
from fm_diffusers.training.tuning import network_of


@dataclass
class RewardArguments(ImageArguments, TrainingArguments):
    """Command line."""

    model: str = field(default="outputs/mnist", metadata={"help": "A folder or a Hub id."})
    output_dir: str = "outputs/reward"
    reward: str = field(default="class", metadata={"help": "class, ink, or module:function."})
    reward_class: str | None = field(
        default=None,
        metadata={"help": "Of `class`, name or number; by default what each image is asked for."},
    )
    label_column: str = field(default="label", metadata={"help": "For the classifier of `class`."})
    class_labels: list[str] | None = field(
        default=None,
        metadata={"help": "What is asked for, names or numbers; by default every class."},
    )
    prompts: list[str] | None = field(
        default=None, metadata={"help": "What is asked for, of networks that take text."}
    )
    unconditional: bool = field(default=False, metadata={"help": "Ask for no class or prompt."})
    train_batch_size: int = field(default=64, metadata={"help": "Images per process and batch."})
    group_size: int = field(default=16, metadata={"help": "Images that are asked for alike."})
    num_inference_steps: int = 10
    dynamics: str = field(default="flow_grpo", metadata={"help": "A name in rl.DYNAMICS."})
    noise_level: float = 0.7
    window_size: int = field(
        default=4, metadata={"help": "Noisy steps at a time; a large number is all but the last."}
    )
    window_every: int = field(default=10, metadata={"help": "Batches until the window moves on."})
    kl_weight: float = field(default=0.1, metadata={"help": "Of the KL to the start."})
    num_samples: int = field(
        default=256, metadata={"help": "That are drawn to measure reward and KL before and after."}
    )
    rank: int | None = field(default=None, metadata={"help": "Of adapters; else all weights."})
    lora_alpha: int | None = None
    lora_target_modules: list[str] | None = None
    max_train_steps: int | None = 200
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant_with_warmup"
    lr_warmup_steps: int = 10
    ema_decay: float = 0.9
    logging_steps: int = 10

    def __post_init__(self) -> None:
        TrainingArguments.__post_init__(self)
        ImageArguments.__post_init__(self)
        if get_dynamics(self.dynamics).diffusion is None or not self.noise_level > 0:
            raise ValueError(
                f"--dynamics {self.dynamics} at --noise_level {self.noise_level} draws no noise, "
                "and the gradient of the reward is that of the noise's probability"
            )
        if self.group_size < 2 or self.train_batch_size % self.group_size:
            raise ValueError(
                f"--train_batch_size {self.train_batch_size} must be whole groups of --group_size "
                f"{self.group_size}, at least 2"
            )
        if not self.kl_weight >= 0:
            raise ValueError(f"--kl_weight must be at least 0, got {self.kl_weight}")
        if self.num_inference_steps < 2:
            raise ValueError("--num_inference_steps must be at least 2, the last is never noisy")


def load(args: RewardArguments) -> FlowMatchingPipeline:
    """Return the pipeline, to be sampled as an ODE by its own solver."""
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion=None)
    pipe.set_progress_bar_config(disable=True)
    keep_labels(pipe.network).eval()
    return pipe


@torch.no_grad()
def measure(
    args: RewardArguments,
    sampler: Sampler,
    asking: Asking,
    reward: Reward,
    network: nn.Module,
    start: nn.Module,
) -> dict[str, float]:
    """Return the mean reward of the SDE's samples, and the KL of its trajectories from the start.

    The latter is in nats, over all noisy steps, and not less than the KL of the samples.
    """
    set_seed(args.seed + 1)
    sampler.set_window(0, None)
    asked = asking.cycled(args.num_samples)
    condition = asking.encode(asked)
    run, kl = sampler.draw(network, condition, len(asked)), 0.0
    for x, t in zip(run.x.split(len(asked)), run.timesteps.split(len(asked)), strict=True):
        steps = [sampler.step(one, x, t, condition) for one in (network, start)]
        kl += steps[0].kl(steps[1]).mean().item()
    rewards = reward(sampler.pipe.decode_latents(run.samples), asked)
    return {"reward": round(rewards.mean().item(), 4), "KL": round(kl, 2)}


def main(args: RewardArguments) -> None:
    check_output(args)
    accelerator = start(args)
    repo_id = create_repository(args, accelerator)
    pipe = load(args).to(accelerator.device)
    asking = Asking.of(args, pipe)
    with accelerator.main_process_first():
        reward = load_reward(args, asking, accelerator.device)
    reference = copy.deepcopy(pipe.network).requires_grad_(False)
    steps = args.num_inference_steps, args.window_every
    sampler = Sampler(pipe, args.dynamics, args.noise_level, *steps)
    curve = Curve(args.gradient_accumulation_steps)
    before = measure(args, sampler, asking, reward, reference, reference)
    picture = sample_grid(pipe, asking.shown(), stochastic=False)
    name = "unet" if pipe.transformer is None else "transformer"
    if args.rank is not None:
        adapt(args, pipe)

    def tuned(network: nn.Module) -> FlowMatchingPipeline:
        return network_of(pipe, network)

    def loss_of(network: nn.Module, batch: Tensor) -> Tensor:
        network.eval()  # no dropout: what has drawn the samples is what learns from them
        sampler.set_window(len(curve.rows), args.window_size)
        asked = [asking.values[i] for i in batch.tolist() for _ in range(args.group_size)]
        condition = asking.encode(asked)
        run = sampler.draw(network, condition, len(asked))
        with torch.no_grad():
            rewards = reward(pipe.decode_latents(run.samples), asked)
        groups = torch.arange(len(asked), device=rewards.device) // args.group_size
        advantages = group_advantages(rewards, groups)

        count = len(sampler.noisy)
        if condition is not None:
            condition = condition.repeat(count, *[1] * (condition.ndim - 1))
        step = sampler.step(network, run.x, run.timesteps, condition)
        with torch.no_grad(), accelerator.autocast():
            first = sampler.step(reference, run.x, run.timesteps, condition)
        ratio = importance_ratio(step.log_prob(run.following, "mean"), run.log_prob)
        kl = step.kl(first, "mean")
        curve.add(accelerator, rewards, kl * count * run.x[0].numel())
        return group_relative_loss(
            ratio, advantages.repeat(count), kl=kl, kl_weight=args.kl_weight
        )

    def draw(network: nn.Module) -> Image.Image:
        return sample_grid(tuned(network), asking.shown(), stochastic=False)

    conditions = [i for i in range(len(asking.values)) for _ in range(args.train_batch_size)]
    groups = args.train_batch_size // args.group_size
    loader = DataLoader(conditions, groups, shuffle=True, drop_last=True)
    outcome = train(
        args, accelerator, pipe.network, loader, loss_of, draw, states={"curve": curve}
    )
    if outcome is not None and accelerator.is_main_process:
        network, figures = outcome
        after = measure(args, sampler, asking, reward, network, reference)
        done, layers = tuned(network), None
        if args.rank is not None:
            layers = lora_layers(**{name: network})
            done.fuse_lora()
            done.unload_lora_weights()

        def beside(folder: Path) -> None:
            if layers is not None:
                done.save_lora_weights(folder, **layers)
            picture.save(folder / "before.png")
            curve.draw(folder / "curve.png", args.reward)

        model, shown = public(args.model), asking.shown()
        figures = {"fine-tuned from": model, "coupling": "independent"} | figures
        figures["measured on"] = (
            f"{args.num_samples} samples by {args.dynamics}, {args.num_inference_steps} steps"
        )
        figures["mean reward, before and after"] = f"{before['reward']}, {after['reward']}"
        figures["KL of the trajectories from the start, in nats"] = after["KL"]
        figures["before (ODE)"] = "![before](before.png)"
        figures["curve"] = "![reward and KL](curve.png)"
        dataset = f"samples of {model}, rewarded by {args.reward}"
        drawn = sample_grid(done, shown)
        publish(args, done, drawn, figures, dataset, repo_id, shown, beside)
    accelerator.end_training()


if __name__ == "__main__":
    with plain_errors():
        main(parse(RewardArguments))
