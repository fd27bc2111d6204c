"""Run under `accelerate launch`: what each process of a training sees, as `rank-K.json`."""

import hashlib
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import train_mnist  # noqa: E402


def fingerprint(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for weight in network.parameters():
        digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()


def main(folder: Path, words: list[str]) -> None:
    seen = {"images": [], "noise": [], "weights": []}
    loss, images = train_mnist.flow_loss, train_mnist.scaled

    def watch_images(args, batch):
        seen["images"] += [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch]
        seen["noise"].append(torch.get_rng_state().double().sum().item())
        return images(args, batch)

    def watch_weights(args, scheduler, network, *rest):
        seen["weights"].append(fingerprint(network))
        return loss(args, scheduler, network, *rest)

    train_mnist.scaled, train_mnist.flow_loss = watch_images, watch_weights
    args = train_mnist.parse(train_mnist.Arguments, words)
    train_mnist.main(args)
    state = train_mnist.start(args)
    seen["processes"] = state.num_processes
    (folder / f"rank-{state.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
