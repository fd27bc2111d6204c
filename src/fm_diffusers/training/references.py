"""Further images of the classes of a batch, over which its targets are averaged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fm_diffusers.couplings import of_classes
from fm_diffusers.paths import GaussianPath
from fm_diffusers.stable_targets import stable_pair
from fm_diffusers.training.data import ImageData


@dataclass(frozen=True, eq=False)
class References:
    """The images that are trained on, to draw from.

    Args:
        data: held in memory.
        count: how many are drawn of each class of a batch, anew for every batch.
        scaled: from uint8 images to what the network is trained on.

    Raises:
        ValueError: if the images are not held in memory.
    """

    data: ImageData
    count: int
    scaled: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if self.data.images is None:
            raise ValueError(
                f"--reference_batch_size {self.count} draws from images that are held in memory: "
                "raise --memory_limit, drop --streaming, or drop it"
            )

    def draw(self, label: int | None, device: torch.device) -> Tensor:
        """Return images of a class, with replacement; of all for None."""
        images, labels = self.data.images, self.data.labels
        assert images is not None
        rows = torch.arange(len(images))
        if label is not None and labels is not None:
            rows = rows[labels == label]
        return self.scaled(images[rows[torch.randint(len(rows), (self.count,))]].to(device))

    def pair(
        self, path: GaussianPath, z: Tensor, eps: Tensor, t: Tensor, label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the pair of `stable_pair`; labels are those of the data, -1 stands for all."""
        data, noise, labels = z.clone(), eps.clone(), None if label is None else label.tolist()
        for group in of_classes(len(z), label):
            known = None if labels is None or labels[group[0]] < 0 else labels[group[0]]
            given = path, z[group], eps[group], t[group], self.draw(known, z.device)
            data[group], noise[group] = stable_pair(*given)
        return data, noise
