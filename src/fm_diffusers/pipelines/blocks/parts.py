"""Components of a modular pipeline, and what blocks make of them."""

from dataclasses import dataclass, replace
from typing import Any

from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import ComponentSpec
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fm_diffusers.pipelines.conditioning import Conditioning
from fm_diffusers.pipelines.labels import by_number
from fm_diffusers.pipelines.latents import Latents
from fm_diffusers.scheduler import GaussianFlowScheduler

#: Components of a saved pipeline, and what they are unless it says so itself.
SAVED = {
    "unet": UNet2DModel,
    "transformer": DiTTransformer2DModel,
    "scheduler": GaussianFlowScheduler,
    "vae": AutoencoderKL,
    "text_encoder": PreTrainedModel,
    "tokenizer": PreTrainedTokenizerBase,
}
#: Components that blocks bring along, with their configuration.
OWN: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "guider": (ClassifierFreeGuidance, {"guidance_scale": 1.0}),
    "image_processor": (VaeImageProcessor, {"vae_scale_factor": 1}),
}
#: What a saved pipeline says beside its components: by default, and in words.
CONFIGS = {
    "null_label": (None, 'the class label that stands for "no class"'),
    "id2label": (None, "names of the classes by number"),
}


def specs(names: tuple[str, ...]) -> list[ComponentSpec]:
    """Return what a block says of the components that it uses."""
    return [
        ComponentSpec(name, SAVED[name])
        if name in SAVED
        else ComponentSpec(
            name,
            OWN[name][0],
            config=FrozenDict(OWN[name][1]),
            default_creation_method="from_config",
        )
        for name in names
    ]


@dataclass(frozen=True)
class Parts:
    """Components of a modular pipeline, None where none of its blocks uses one."""

    config: FrozenDict
    unet: Any = None
    transformer: Any = None
    scheduler: Any = None
    vae: Any = None
    text_encoder: Any = None
    tokenizer: Any = None

    @classmethod
    def of(cls, components: Any) -> "Parts":
        """Return those of a pipeline."""
        config = {name: default for name, (default, _) in CONFIGS.items()}
        config = FrozenDict(config | dict(components.config))
        return cls(config, **{name: getattr(components, name, None) for name in SAVED})

    @property
    def network(self) -> nn.Module:
        """The `unet` or the `transformer`.

        Raises:
            ValueError: if neither is loaded, or both are.
        """
        if (self.unet is None) == (self.transformer is None):
            found = "neither" if self.unet is None else "both"
            raise ValueError(
                f"a pipeline needs a unet or a transformer, got {found}: load_components() loads "
                "what was saved, update_components(unet=...) sets one"
            )
        return self.transformer if self.unet is None else self.unet

    @property
    def conditioning(self) -> Conditioning:
        """What turns labels and prompts into the condition that the network is fed."""
        texts = (self.text_encoder, self.tokenizer)
        plain = Conditioning(self.network, self.config["null_label"], *texts)
        names = by_number(self.config["id2label"], plain.num_classes)  # JSON has texts for numbers
        return replace(plain, id2label=names)

    @property
    def canvas(self) -> Latents:
        """What turns noise into samples of the network's size."""
        return Latents(self.network, self.vae)
