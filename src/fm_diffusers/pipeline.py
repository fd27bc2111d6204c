r"""`FlowMatchingPipeline`: draws images from a flow-matching model, as an ODE or as an SDE.

The pipeline knows nothing of paths or solvers: it draws noise, asks the network at the scheduler's
`timesteps`, guides its output, and hands it to `scheduler.step`. Which process is sampled is a
matter of the scheduler's configuration::

    pipe = FlowMatchingPipeline.from_pretrained("user/flow-mnist")
    ode = pipe(class_labels=[3, 7]).images
    pipe.scheduler = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, diffusion="memoryless"
    )
    sde = pipe(class_labels=[3, 7]).images
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fm_diffusers.hub import HubShims
from fm_diffusers.scheduler import GaussianFlowScheduler

Generators = torch.Generator | list[torch.Generator]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class FlowMatchingPipeline(HubShims, DiffusionPipeline):
    r"""Unconditional or class-conditional image generation by flow matching.

    Args:
        unet: the network, fed samples and `timesteps`; images are scaled to [-1, 1].
        scheduler: says what the network predicts on which path, and how to sample it; or one of
            diffusers', for a network that predicts what it expects (`flow_prediction` on the
            linear path for its flow schedulers).
        null_label: the class label that stands for "no class", the last of the network's; needed
            for classifier-free guidance. None for networks trained without it.

    References: Lipman et al., "Flow Matching for Generative Modeling",
    https://arxiv.org/abs/2210.02747; Ho, Salimans, "Classifier-Free Diffusion Guidance",
    https://arxiv.org/abs/2207.12598.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self, unet: UNet2DModel, scheduler: GaussianFlowScheduler, null_label: int | None = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        embeds = unet.config.num_class_embeds
        if null_label is not None and embeds != null_label + 1:
            raise ValueError(
                f"null_label must be the last of the network's classes, got {null_label} for "
                f"num_class_embeds={embeds}; None is for networks without one"
            )
        self.register_to_config(null_label=null_label)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for; 0 for an unconditional network."""
        if self.config.null_label is not None:
            return self.config.null_label
        return self.unet.config.num_class_embeds or 0

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """Standard deviation of the noise to start from; 1 for diffusers' flow schedulers."""
        return getattr(self.scheduler, "init_noise_sigma", 1.0)

    def check_inputs(
        self,
        labels: list[int] | None,
        num_images_per_label: int,
        batch_size: int | None,
        guidance_scale: float,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Raise a `ValueError` for what cannot be sampled, saying why and what to pass."""
        if labels is not None and self.num_classes == 0:
            raise ValueError(
                "class_labels were given, but the network is unconditional: drop them"
            )
        if labels is None and self.num_classes and self.config.null_label is None:
            raise ValueError(
                "the network is class-conditional and has no null label: pass class_labels, "
                f"each in 0..{self.num_classes - 1}"
            )
        possible = range(self.num_classes)
        wrong = [k for k in labels or [] if type(k) is not int or k not in possible]
        if wrong:
            raise ValueError(
                f"class_labels must be integers in 0..{self.num_classes - 1}, got {wrong}"
            )
        if labels is not None and (batch_size is not None or not labels):
            raise ValueError(
                f"give class_labels, at least one, or batch_size, got {labels} and {batch_size}; "
                "num_images_per_label draws more images of each label"
            )
        for name, number in (
            ("num_images_per_label", num_images_per_label),
            ("batch_size", 1 if batch_size is None else batch_size),
        ):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if guidance_scale != 1 and (labels is None or self.config.null_label is None):
            raise ValueError(
                f"guidance_scale={guidance_scale} needs class_labels and a network trained with a "
                "null label; 1 is no guidance"
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                "callback_on_step_end_tensor_inputs must be among "
                f"{self._callback_tensor_inputs}, got {sorted(unknown)}"
            )

    def encode_labels(
        self, labels: list[int] | None, num_images_per_label: int, batch_size: int, guide: bool
    ) -> Tensor | None:
        """Return the labels of the batch, preceded by as many null labels where it is guided."""
        if self.num_classes == 0:
            return None
        null = torch.full(
            (batch_size,), self.config.null_label or 0, device=self._execution_device
        )
        if labels is None:
            return null
        labels = torch.tensor(labels, device=null.device).repeat_interleave(num_images_per_label)
        return torch.cat([null, labels]) if guide else labels

    def prepare_latents(
        self, batch_size: int, generator: Generators | None, latents: Tensor | None
    ) -> Tensor:
        """Return the samples at the first timestep, in float32 or better: noise, unless given."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size or (None, None)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"a list of generators must have one for each of the {batch_size} images, "
                f"got {len(generator)}"
            )
        shape = (batch_size, self.unet.config.in_channels, height, width)
        if latents is None:
            if height is None:
                raise ValueError("the network has no sample_size: pass latents of the wanted size")
            latents = randn_tensor(shape, generator=generator, device=self._execution_device)
            return latents * self.init_noise_sigma
        if latents.ndim != 4 or latents.shape[:2] != shape[:2]:
            raise ValueError(
                f"latents must have the shape {shape}, got {tuple(latents.shape)}: they are the "
                "samples at the first timestep, one for each label or for batch_size"
            )
        dtype = torch.promote_types(latents.dtype, torch.float32)
        return latents.to(self._execution_device, dtype)

    def predict(
        self, latents: Tensor, t: Tensor, labels: Tensor | None, guidance_scale: float
    ) -> Tensor:
        """Return what the network predicts, guided; `labels` are those of `encode_labels`."""
        guide = guidance_scale != 1
        model_input = torch.cat([latents] * 2) if guide else latents
        if hasattr(self.scheduler, "scale_model_input"):  # diffusers' flow schedulers have none
            model_input = self.scheduler.scale_model_input(model_input, t)
        model_input = model_input.to(self.unet.dtype)
        output = self.unet(model_input, t, labels, return_dict=False)[0].to(latents.dtype)
        return torch.lerp(*output.chunk(2), guidance_scale) if guide else output

    def calibration_field(
        self,
        num_samples: int,
        generator: Generators | None = None,
        noise: Tensor | None = None,
        class_labels: list[int] | None = None,
        guidance_scale: float = 1.0,
    ) -> tuple[Callable[[Tensor, Tensor, slice], Tensor], Tensor]:
        """Return the network as a field of parts of a batch, and standard normal noise."""
        if noise is None:
            drawn = self.prepare_latents(num_samples, generator, None)
            noise = drawn / self.init_noise_sigma
        else:
            noise = self.prepare_latents(len(noise), None, noise)
        labels = class_labels or list(range(self.num_classes)) or None
        if labels is not None:
            labels = [labels[i % len(labels)] for i in range(len(noise))]
        sizes = (1, None if labels else len(noise), guidance_scale, "pt", [])
        self.check_inputs(labels, *sizes)

        def field(x: Tensor, t: Tensor, part: slice) -> Tensor:
            timestep = self.scheduler.to_timestep(t).to(x.device, torch.float32)
            chosen = None if labels is None else labels[part]
            encoded = self.encode_labels(chosen, 1, len(x), guidance_scale != 1)
            return self.predict(x, timestep, encoded, guidance_scale)

        return field, noise

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        num_images_per_label: int = 1,
        batch_size: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[float] | None = None,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> ImagePipelineOutput | tuple[Any]:
        r"""Draw images.

        Args:
            class_labels: a label or a list of labels, one for each image; None draws from the
                network without a class.
            num_images_per_label: number of images of each label, next to each other.
            batch_size: number of images where there are no labels; by default 1.
            num_inference_steps: number of steps from noise to data.
            timesteps: where the steps start instead, descending from `num_train_timesteps`.
            guidance_scale: w of `uncond + w (cond - uncond)`; 1 is no guidance.
            generator: of all noise, that of an SDE included; or a list, one for each image, which
                then does not depend on its batch.
            latents: samples at the first timestep, shape `(batch, channels, height, width)`.
            output_type: `pil`, `np` (in [0, 1], channels last), `pt` (in [0, 1]) or `latent`.
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: called as `(pipe, index, timestep, {"latents": ...})` after every
                step; may return a dictionary with new latents.
            callback_on_step_end_tensor_inputs: what it is given.

        Returns:
            The images.

        Raises:
            ValueError: for labels, sizes or options that the network cannot serve.
        """
        labels = class_labels.tolist() if isinstance(class_labels, Tensor) else class_labels
        labels = None if labels is None else np.asarray(labels).reshape(-1).tolist()
        self.check_inputs(
            labels,
            num_images_per_label,
            batch_size,
            guidance_scale,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        batch_size = (batch_size or 1) if labels is None else len(labels) * num_images_per_label
        guide = guidance_scale != 1
        label_input = self.encode_labels(labels, num_images_per_label, batch_size, guide)
        grid = {"timesteps": timesteps} if timesteps is not None else {}
        steps = None if timesteps is not None else num_inference_steps
        self.scheduler.set_timesteps(steps, device=self._execution_device, **grid)
        latents = self.prepare_latents(batch_size, generator, latents)

        takes_noise = "generator" in inspect.signature(self.scheduler.step).parameters
        noise = {"generator": generator} if takes_noise else {}
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                output = self.predict(latents, t, label_input, guidance_scale)
                latents = self.scheduler.step(output, t, latents, return_dict=False, **noise)[0]
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, i, t, {"latents": latents}).get(
                        "latents", latents
                    )
                progress_bar.update()

        images = self.image_processor.postprocess(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
