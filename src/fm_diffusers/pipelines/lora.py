r"""Low-rank adapters (LoRA) of a pipeline: loaded, mixed, fused and saved as diffusers does.

An adapter adds a product of two thin matrices to a weight,

.. math:: W' = W + \frac{\alpha}{r} B A, \qquad A \in R^{r \times n},\; B \in R^{m \times r},

and B = 0 at first, so that training starts from the network as it is. The work is done by peft
and by diffusers' mixins. `UNet2DModel` and `DiTTransformer2DModel` lack the adapter methods that
diffusers gives to other networks (in 0.42): importing this module adds the mixin to the bases of
these classes, which stay the ones that are saved. So a script trains them as any other::

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"]))
    ...
    FlowMatchingPipeline.save_lora_weights(folder, **lora_layers(unet=unet))

    pipe.load_lora_weights(folder, adapter_name="style")
    pipe.set_adapters("style", 0.8)

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
https://arxiv.org/abs/2106.09685.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.loaders import PeftAdapterMixin, StableDiffusionLoraLoaderMixin
from diffusers.utils import recurse_remove_peft_layers
from torch import Tensor, nn
from transformers import PreTrainedModel

from fm_diffusers.diffusers_internals import fetch_state_dict, give_base
from fm_diffusers.files import reading
from fm_diffusers.pipelines.kohya import from_kohya, is_kohya

for network in (UNet2DModel, DiTTransformer2DModel):
    give_base(network, PeftAdapterMixin, unless=PeftAdapterMixin)

#: Components that adapters are saved for, by the beginning of their keys.
COMPONENTS = ("unet", "transformer", "text_encoder")
Layers = dict[str, Tensor] | nn.Module


def lora_layers(adapter_name: str = "default", **networks: nn.Module) -> dict[str, Any]:
    """Return what `save_lora_weights` takes for the adapters of networks.

    Args:
        adapter_name: of the adapter.
        **networks: by the name of the pipeline's component, out of their wrappers.

    Raises:
        ValueError: for a network without this adapter.

    Example:
        >>> from peft import LoraConfig
        >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4,
        ...     down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        >>> unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["time_emb_proj"]))
        >>> layers = lora_layers(unet=unet)
        >>> [*layers]
        ['unet_lora_layers', 'unet_lora_adapter_metadata']
        >>> layers["unet_lora_layers"]["mid_block.resnets.0.time_emb_proj.lora_A.weight"].shape
        torch.Size([2, 32])
    """
    from peft import get_peft_model_state_dict

    taken = {}
    for name, network in networks.items():
        configs: Any = getattr(network, "peft_config", {})
        if adapter_name not in configs:
            raise ValueError(f"{name} has no adapter {adapter_name!r}: give it one by add_adapter")
        layers = get_peft_model_state_dict(network, adapter_name=adapter_name)
        taken[f"{name}_lora_layers"] = layers
        taken[f"{name}_lora_adapter_metadata"] = configs[adapter_name].to_dict()
    return taken


def _fetched(
    source: str | dict[str, Tensor],
    weight_name: str | None = None,
    use_safetensors: bool | None = None,
    **where: Any,
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return a LoRA as it is written, and what its file says of it."""
    places = ("local_files_only", "cache_dir", "force_download", "proxies", "token", "revision")
    unknown = set(where) - {*places, "subfolder"}
    if unknown:
        raise ValueError(
            f"load_lora_weights has no arguments {sorted(unknown)}: where to look is said by "
            f"weight_name, use_safetensors, subfolder, {', '.join(places)}"
        )
    return fetch_state_dict(
        source,
        weight_name,
        use_safetensors is not False,
        **dict.fromkeys((*places, "subfolder")) | {"force_download": False} | where,
        user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
        allow_pickle=use_safetensors is False,
    )


def _without_adapters(network: nn.Module) -> None:
    """Give a network its own layers back."""
    recurse_remove_peft_layers(network)
    vars(network).pop("peft_config", None)
    if hasattr(network, "_hf_peft_config_loaded"):
        vars(network)["_hf_peft_config_loaded"] = False


class LoraLoader(StableDiffusionLoraLoaderMixin):
    """Adapters for whatever network a pipeline has, to stand before `DiffusionPipeline`."""

    @property
    def _lora_loadable_modules(self) -> list[str]:
        able = (PeftAdapterMixin, PreTrainedModel)
        return [name for name in COMPONENTS if isinstance(getattr(self, name, None), able)]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load adapters from a folder, a file, the Hub or a state dict, and make them active.

        Args:
            pretrained_model_name_or_path_or_dict: what `save_lora_weights` wrote, whose keys begin
                with the name of a component, or a LoRA with kohya's names; see `kohya`.
            adapter_name: under which they are mixed; by default `default_0` and so on.
            hotswap: whether to replace the adapter that has this name.
            **kwargs: where to look: `weight_name`, `subfolder`, `revision`, `token`, `cache_dir`,
                `force_download`, `local_files_only`, `proxies`, `use_safetensors`.

        Pickles are read only with `use_safetensors=False`. What cannot be loaded leaves no part.

        Raises:
            ValueError: for weights that are no adapters, or of layers that are not here; or for a
                file that cannot be read, by its name.
        """
        source = pretrained_model_name_or_path_or_dict
        source = dict(source) if isinstance(source, dict) else str(source)
        with reading("the state dict" if isinstance(source, dict) else source), self.whole():
            layers, metadata = _fetched(source, **kwargs)
            if is_kohya(layers):
                able = {name: getattr(self, name) for name in self._lora_loadable_modules}
                layers, metadata = from_kohya(layers, able)
            self.check_lora_layers(layers)
            options = {"adapter_name": adapter_name, "hotswap": hotswap, "metadata": metadata}
            self._add(layers, options | {"network_alphas": None, "_pipeline": self})

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Take out of all networks what was added to some before an error."""
        networks = [getattr(self, name) for name in self._lora_loadable_modules]
        before = [{*getattr(network, "peft_config", {})} for network in networks]
        try:
            yield
        except Exception:
            for network, known in zip(networks, before, strict=True):
                delete = getattr(network, "delete_adapters", None) or network.delete_adapter
                for added in {*getattr(network, "peft_config", {})} - known if known else ():
                    delete(added)
                if not known:
                    _without_adapters(network)
            raise

    def _add(self, layers: dict[str, Tensor], options: dict[str, Any]) -> None:
        for name in sorted({key.split(".")[0] for key in layers}):
            if name == "text_encoder":
                self.load_lora_into_text_encoder(layers, text_encoder=self.text_encoder, **options)
            else:
                getattr(self, name).load_lora_adapter(layers, prefix=name, **options)

    def check_lora_layers(self, layers: dict[str, Tensor]) -> None:
        """Raise a `ValueError` for weights that belong to no layer of the pipeline."""
        able, known = self._lora_loadable_modules, set()
        for name in able:
            known |= {f"{name}.{layer}" for layer, _ in getattr(self, name).named_modules()}
        # transformers has renamed the layers of text encoders, and finds them by their old names
        wrong = [
            key
            for key in layers
            if key.split(".lora")[0] not in known
            and not (key.startswith("text_encoder.") and "text_encoder" in able)
        ]
        if wrong or not layers:
            raise ValueError(
                f"adapters of this pipeline are those of {able} and their layers, by the names of "
                f"their weights, got {wrong[:1] or 'none'}: load the file that save_lora_weights "
                "wrote for such networks"
            )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the pipeline, without adapters; for arguments see diffusers.

        Raises:
            ValueError: if it has adapters, whose layers would not be found again.
        """
        if adapters := self.get_list_adapters():
            raise ValueError(
                f"the pipeline has adapters {adapters}, which are saved by save_lora_weights: "
                "unload_lora_weights() first, after fuse_lora() to keep what they add"
            )
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        unet_lora_layers: Layers | None = None,
        transformer_lora_layers: Layers | None = None,
        text_encoder_lora_layers: Layers | None = None,
        unet_lora_adapter_metadata: dict[str, Any] | None = None,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Write `pytorch_lora_weights.safetensors`; `lora_layers` has what is to be passed.

        Args:
            save_directory: made where it is missing.
            unet_lora_layers: its adapter's state dict.
            transformer_lora_layers: likewise.
            text_encoder_lora_layers: likewise.
            unet_lora_adapter_metadata: the `LoraConfig` as a dictionary (rank, alpha, targets).
            transformer_lora_adapter_metadata: likewise.
            text_encoder_lora_adapter_metadata: likewise.
            **options: of diffusers: `weight_name`, `is_main_process`, `save_function`,
                `safe_serialization`.

        Raises:
            ValueError: if there is nothing to save.
        """
        layers = {
            "unet": unet_lora_layers,
            "transformer": transformer_lora_layers,
            "text_encoder": text_encoder_lora_layers,
        }
        layers = {name: value for name, value in layers.items() if value}
        if not layers:
            raise ValueError(
                f"pass layers of one of {COMPONENTS}: lora_layers(unet=unet) has them"
            )
        metadata = {
            "unet": unet_lora_adapter_metadata,
            "transformer": transformer_lora_adapter_metadata,
            "text_encoder": text_encoder_lora_adapter_metadata,
        }
        cls._save_lora_weights(str(save_directory), layers, metadata, **options)

    def fuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Add adapters to the weights; by default in all components, for options see diffusers."""
        super().fuse_lora(components or self._lora_loadable_modules, **options)

    def unfuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Subtract fused adapters again; by default in all components."""
        super().unfuse_lora(components or self._lora_loadable_modules, **options)
