"""A network of another project, called as diffusers calls its own.

What networks return differs as much as how they are called. Here the prediction is found in it, or
its absence is told: a wrong tensor of the right shape would pass for a velocity.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn.functional import one_hot

Call = Callable[[nn.Module, Tensor, Tensor, dict[str, Any]], Any]

#: The keyword of a project's labels, and how its networks are called with samples and timesteps.
SIGNATURES: dict[str, tuple[str, Call]] = {
    "sit": ("y", lambda f, x, t, more: f(x, t, **more)),
    # the mean velocity from t to t is the velocity
    "meanflow": ("y", lambda f, x, t, more: f(x, t, t, **more)),
    "meta": ("label", lambda f, x, t, more: f(x=x, t=t, **more)),
    "torchcfm": ("y", lambda f, x, t, more: f(t, x, **more)),
    "edm": ("class_labels", lambda f, x, t, more: f(x, torch.exp(4 * t), **more)),
    # F has no default for its labels
    "edm_raw": ("class_labels", lambda f, x, t, more: f(x, t, **{"class_labels": None, **more})),
}


class AdaptedNetwork(ModelMixin, ConfigMixin):
    """A network of another project, called as diffusers calls a `UNet2DModel`.

    It is put into evaluation mode, as `from_pretrained` does: in training mode SiT drops labels.
    It cannot be saved, since whoever loads it would not know the class of the network inside; save
    that network's `state_dict` and the scheduler.

    The prediction is what the network returns, the first of a tuple or list, or what is called
    `sample` in a dictionary or an object; where it is another, `entry` names it. It has the shape
    of the samples, or twice as many channels: a variance follows, which is dropped.

    Args:
        network: the other project's module.
        signature: how it is called, a name in `SIGNATURES`.
        in_channels: channels of its samples.
        sample_size: their height and width; None if latents are always given.
        num_classes: number of classes; None for unconditional networks.
        null_label: whether it knows the label `num_classes` as "no class", which guidance needs.
        label_name: the keyword of its labels, where it is not the signature's.
        one_hot: whether it takes labels as one-hot rows, zeros being "no class".
        extras: more keyword arguments, the same in every call.
        entry: index or name of the prediction in what the network returns, see above.
    """

    ignore_for_config = ["network"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        network: nn.Module,
        signature: str,
        in_channels: int,
        sample_size: int | tuple[int, int] | None = None,
        num_classes: int | None = None,
        null_label: bool = False,
        label_name: str | None = None,
        one_hot: bool = False,
        extras: dict[str, Any] | None = None,
        entry: int | str | None = None,
    ) -> None:
        super().__init__()
        if null_label if num_classes is None else num_classes < 1:
            raise ValueError(
                "num_classes must be at least 1, or None where there is no null_label, got "
                f"{num_classes}: pass the number of classes, the null label not counted"
            )
        self.network = network
        self.register_to_config(num_class_embeds=num_classes and num_classes + null_label)
        self.eval()

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return what the network predicts at the scheduler's timestep.

        Args:
            sample: shape `(batch, channels, ...)`.
            timestep: of the scheduler, or one for each sample; the network gets `(batch,)`, in
                float32 or better, because rounding t to bfloat16 would move it.
            class_labels: integers, shape `(batch,)`; None calls the network without labels.
            return_dict: whether to return a `UNet2DOutput` or a tuple.

        Raises:
            ValueError: if no prediction of the samples' shape is found in what it returns.
        """
        c, (label, call) = self.config, SIGNATURES[self.config.signature]
        dtype = torch.promote_types(sample.dtype, torch.float32)
        t = torch.as_tensor(timestep, dtype=dtype, device=sample.device).expand(len(sample))
        if c.one_hot and class_labels is not None:
            class_labels = one_hot(class_labels, c.num_class_embeds)[:, : c.num_classes].to(dtype)
        labels = {} if class_labels is None else {c.label_name or label: class_labels}
        output = call(self.network, sample, t, (c.extras or {}) | labels)
        output = _without_variance(_prediction(output, c.entry), sample)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raise a `NotImplementedError` that says what to save instead."""
        raise NotImplementedError(
            "an adapted network cannot be saved: diffusers could not make its "
            f"{type(self.network).__name__} when loading. Save `unet.network.state_dict()` and "
            "`scheduler.save_pretrained(folder)`, and adapt the network again"
        )


def _prediction(output: Any, entry: int | str | None) -> Tensor:
    """Return the tensor in what a network returned that is its prediction."""
    if isinstance(output, Tensor) and entry is None:
        return output
    key: Any = entry if entry is not None else 0 if isinstance(output, tuple | list) else "sample"
    try:
        by_name = isinstance(key, str) and not isinstance(output, Mapping)
        found = getattr(output, key) if by_name else output[key]
    except (AttributeError, IndexError, KeyError, TypeError):
        found = None
    if isinstance(found, Tensor) and not isinstance(output, Tensor):
        return found
    raise ValueError(
        f"the prediction must be a tensor at entry {key!r} of what the network returns, got "
        f"{_described(output)}: pass entry=, its index or name"
    )


def _described(output: Any) -> str:
    """Return the type of an output, and what is in it."""
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} of {', '.join(map(str, output)) or 'nothing'}"
    if isinstance(output, tuple | list):
        return f"a {kind} of {', '.join(type(part).__name__ for part in output) or 'nothing'}"
    return f"a {kind}"


def _without_variance(output: Tensor, sample: Tensor) -> Tensor:
    """Return the first half of the channels where a variance follows."""
    doubled = (len(sample), 2 * sample.shape[1], *sample.shape[2:])
    if output.shape == doubled:
        return output[:, : sample.shape[1]]
    if output.shape != sample.shape:
        raise ValueError(
            f"the network must predict the shape of the samples, {tuple(sample.shape)}, or twice "
            f"the channels where a variance follows, got {tuple(output.shape)}: pass entry= if "
            "the prediction is another one of its outputs"
        )
    return output
