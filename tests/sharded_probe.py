"""Run under `accelerate launch`: what processes see of a training that share a network (FSDP2).

Accelerate shares networks on GPUs alone. Its processes are told here that they are on GPUs, after
they have found each other on the CPU through gloo; all that follows is Accelerate's own FSDP2.
Run without the launcher, it is the training of one process. `rank-K.json` holds what was seen.
"""

import json
import os
import sys
from pathlib import Path

from accelerate import Accelerator, DistributedType, PartialState
from diffusers.models.embeddings import Timesteps
from torch.distributed.tensor import DTensor

from fm_diffusers.training import pictures

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import train_autoencoder  # noqa: E402
import train_mnist  # noqa: E402

#: Scripts with their command lines.
SCRIPTS = {
    "train_mnist": (train_mnist, train_mnist.Arguments),
    "train_autoencoder": (train_autoencoder, train_autoencoder.AutoencoderArguments),
}


def share_on_cpus() -> None:
    """Let Accelerate take CPU processes for those of GPUs."""
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def watch(seen: dict) -> None:
    """Note the share of the weights that is held, the norms of gradients, and how times arrive."""
    prepare, clip, feel = train_mnist.prepare, Accelerator.clip_grad_norm_, Timesteps.forward

    def watch_share(*given):
        network, *others = prepare(*given)
        weights = list(network.parameters())
        parts = [weight.to_local() for weight in weights if isinstance(weight, DTensor)]
        seen["divided"] = len(parts) == len(weights)
        seen["held"] = sum(part.numel() for part in parts)
        seen["all"] = sum(weight.numel() for weight in weights)
        return network, *others

    def watch_norm(self, weights, *rest):
        norm = clip(self, weights, *rest)
        seen["norms"].append((norm.full_tensor() if isinstance(norm, DTensor) else norm).item())
        return norm

    def watch_times(self, timesteps):
        seen["times"].add(str(timesteps.dtype))
        return feel(self, timesteps)

    train_mnist.prepare, Accelerator.clip_grad_norm_ = watch_share, watch_norm
    Timesteps.forward = watch_times
    pictures.processes.__defaults__ = (2, 3, "memoryless")  # they are drawn to be compared


def main(folder: Path, name: str, words: list[str]) -> None:
    seen = {"norms": [], "times": set()}
    watch(seen)
    if "WORLD_SIZE" in os.environ:
        share_on_cpus()
    script, arguments = SCRIPTS[name]
    script.main(script.parse(arguments, words))
    seen["times"] = sorted(seen["times"])
    rank = PartialState().process_index
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
