"""What a pipeline does beside drawing: the noise and the density of images, and what lies between.

Conditions are arguments of a call by name (`class_labels`, `prompt`, `negative_prompt`,
`guidance_scale`, `guider`, ...), one for all images or one for each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from fm_diffusers.pipelines.arguments import NUM_INFERENCE_STEPS, count, number
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.pipelines.denoising import alone, denoise
from fm_diffusers.pipelines.densities import LogLikelihoodOutput, density
from fm_diffusers.pipelines.encoding import Encoding
from fm_diffusers.pipelines.guidance import guidance_of
from fm_diffusers.pipelines.images import as_pixels
from fm_diffusers.pipelines.inversion import InversionOutput, between, solved
from fm_diffusers.pipelines.networks import check_size, warn_of_size
from fm_diffusers.pipelines.outputs import shown
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.checks import check_steps

#: Carries samples from noise to images, or back.
Run = Callable[[Tensor], Tensor]


class Operations(Encoding):
    """A pipeline that inverts, interpolates and measures images."""

    @torch.no_grad()
    def invert(
        self,
        image: Any,
        num_inference_steps: int = NUM_INFERENCE_STEPS,
        tolerance: float | None = None,
        **conditions: Any,
    ) -> InversionOutput:
        r"""Return the noise that the sampling ODE carries to images, and how well it returns.

        A call with these `latents`, as many steps and the same conditions draws the images.

        Args:
            image: pictures, arrays or tensors in [0, 1]; see `__call__`.
            num_inference_steps: of the way back, and of the way forth that measures it.
            tolerance: root mean square of the round trip, pixels being in [-1, 1], up to which the
                inverse of the discrete run is solved for, `1e-6` for example, at two runs for each
                correction; None runs back once.
            **conditions: of the images; see the module.

        Returns:
            `latents` and the `round_trip_error` of each image.

        Raises:
            ValueError: for an SDE, whose noise is not in the image; a scheduler of diffusers; or a
                tolerance that is not reached.

        Example:
            >>> found = pipe.invert(image, class_labels=3)  # doctest: +SKIP
            >>> pipe(class_labels=3, latents=found.latents)  # doctest: +SKIP
        """
        with self._runs(image, num_inference_steps, tolerance, conditions) as (x, forth, back):
            found = solved(forth, back, x, tolerance)
        self.maybe_free_model_hooks()
        return found

    @torch.no_grad()
    def interpolate(
        self,
        a: Any,
        b: Any,
        num_images: int = 8,
        num_inference_steps: int = NUM_INFERENCE_STEPS,
        output_type: str = "pil",
        return_dict: bool = True,
        **conditions: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images on the way from one image, or noise, to another, both ends included.

        The noises of both are joined by a great circle, on which they keep their length, and each
        point of it is drawn.

        Args:
            a: where to begin: a picture, an array or a tensor in [0, 1], which is inverted; or
                noise, a tensor with numbers outside of [0, 1] of the shape of `latents`.
            b: where to end, likewise.
            num_images: number of images, at least 2.
            num_inference_steps: of the runs back and forth.
            output_type: see `__call__`.
            return_dict: see `__call__`.
            **conditions: of all images; see the module.

        Raises:
            ValueError: see `invert`; or for more than one image or condition.
        """
        if count("num_images", num_images) < 2:
            raise ValueError(f"num_images must be at least 2, the two ends, got {num_images}")
        asked = self.asking(**conditions)
        if asked.count != 1:
            raise ValueError(
                f"all images of an interpolation have one condition, got {asked.count}: pass one "
                "label or prompt"
            )
        ends = [self._noise_of(x, num_inference_steps, conditions) for x in (a, b)]
        shares = torch.linspace(0, 1, num_images, dtype=torch.float64)
        if ends[0].shape != ends[1].shape or len(ends[0]) != 1:
            raise ValueError(
                "a and b must be one image or noise each, of one size, got samples of the shapes "
                f"{tuple(ends[0].shape)} and {tuple(ends[1].shape)}"
            )
        latents = between(ends[0][0], ends[1][0], shares)
        several = asked.cycled(num_images).given
        return self(
            **several,
            num_inference_steps=num_inference_steps,
            latents=latents,
            output_type=output_type,
            return_dict=return_dict,
        )

    def log_likelihood(
        self,
        image: Any,
        num_probes: int | None = 16,
        num_inference_steps: int | None = None,
        tolerance: float = 1e-6,
        generator: torch.Generator | None = None,
        **conditions: Any,
    ) -> LogLikelihoodOutput:
        r"""Return the log-density of images under the sampling ODE, and bits per dimension.

        Args:
            image: pictures or bytes, which are integers: each is measured at a random point of its
                cell, which bounds its code length from above; or floating-point numbers in [0, 1],
                which are points. With a `vae` it is the density of their codes.
            num_probes: number of random vectors for the divergence; None computes it exactly, at
                the cost of one evaluation for every dimension.
            num_inference_steps: number of steps of `rk4` on a fixed grid; None integrates to the
                tolerance, with torchdiffeq.
            tolerance: of that, for the log-density per dimension.
            generator: of random vectors and points, on the CPU.
            **conditions: of the images; see the module.

        Raises:
            ValueError: for a scheduler of diffusers, a path whose noise and data were paired, or
                what the likelihood cannot do.
        """
        for name, value in (
            ("num_probes", num_probes),
            ("num_inference_steps", num_inference_steps),
        ):
            if value is not None:
                count(name, value)
        number("tolerance", tolerance, "it is the error that may be made", above=0)
        if num_inference_steps is not None:
            check_steps(num_inference_steps)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator, got {shown(generator)}")
        self._check_scheduler("density")
        asked = self.asking(**conditions)
        with alone(self) as own:
            return density(
                own,
                image,
                num_probes,
                num_inference_steps,
                tolerance,
                generator,
                partial(matched, asked),
            )

    def asking(self, condition: Any = None, **conditions: Any) -> Asked:
        """Return what a call asks for, by the pipeline's own guider unless it brings one."""
        if unknown := sorted({*conditions} - {field.name for field in fields(Asked)}):
            raise ValueError(
                f"there is no condition {unknown[0]!r}: the conditions of images are "
                f"{', '.join(field.name for field in fields(Asked))}"
            )
        own = conditions.get("guider") or self.guider
        return Asked(**self.conditioning.named(condition, **{**conditions, "guider": own}))

    def _check_scheduler(self, process: str) -> None:
        """Raise a `ValueError` for a scheduler that has no such process."""
        if not isinstance(self.scheduler, GaussianFlowScheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} has no {process}: take "
                "GaussianFlowScheduler.from_config(pipe.scheduler.config)"
            )
        name = self.scheduler.config.diffusion
        if process == "inverse" and name is not None:
            raise ValueError(
                f"diffusion={name!r} draws noise at every step, which is not in the image: invert "
                "with the ODE, pipe.scheduler = "
                "GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion=None)"
            )

    @contextmanager
    def _runs(
        self, image: Any, steps: int, tolerance: float | None, conditions: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Run, Run]]:
        """Give the samples of images, and the runs from noise to them and back."""
        n = count("num_inference_steps", steps)
        if tolerance is not None:
            number("tolerance", tolerance, "it is the error of the round trip", above=0)
        self._check_scheduler("inverse")
        x = self.canvas.encode(as_pixels("image", image, self.canvas.channels))
        check_size(self.network, x.shape[2:], self.vae_scale_factor)
        warn_of_size(self.network, x.shape[2:], self.vae_scale_factor)
        x = x.to(self._execution_device)
        if tolerance is not None and x.device.type == "cpu":
            x = x.double()  # float32 rounds a state too coarsely to solve for it
        asked = matched(self.asking(**conditions), len(x))
        self.check_inputs(asked)
        condition = self.encode_condition(asked)
        with alone(self) as own:
            own.set_progress_bar_config(disable=True)
            scheduler = own.scheduler

            def run(x: Tensor, back: bool) -> Tensor:
                scheduler.set_timesteps(n, device=x.device)
                x = x * scheduler.reverse_timesteps() if back else x
                guidance = guidance_of(asked.guider or asked.scale, scheduler)
                return denoise(own, x, condition, guidance)

            yield x, partial(run, back=False), partial(run, back=True)

    def _noise_of(self, x: Any, steps: int, conditions: dict[str, Any]) -> Tensor:
        """Return noise as it is, and that of an image."""
        if isinstance(x, Tensor) and x.is_floating_point() and x.is_meta:
            raise ValueError(f"a and b must hold numbers, got a tensor on {x.device}")
        if isinstance(x, Tensor) and not x.is_complex() and not ((x >= 0) & (x <= 1)).all():
            return x[None] if x.ndim == 3 else x
        with self._runs(x, steps, None, conditions) as (samples, _, back):
            return back(samples)


def matched(asked: Asked, number: int, repeats: int = 1) -> Asked:
    """Return conditions for so many images: one for all, or one for each; each `repeats` times.

    Raises:
        ValueError: for another number of conditions.
    """
    given = 1 if asked.items is None else asked.count
    if given not in (1, number) or asked.batch_size not in (None, number):
        raise ValueError(
            f"conditions must be one for all or one for each of the {number} images, got "
            f"{asked.batch_size or given}"
        )
    return asked.cycled(number).repeated(repeats)
