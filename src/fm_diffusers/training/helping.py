r"""What `--help` of a script shows: its description, and its flags in groups.

A group is a class of arguments, titled by the first line of its docstring, and a flag belongs to
the first class that has it: a script that only changes a default does not move the flag. Flags
that mean the same in every script are explained once, in `COMMON`.
"""

import inspect
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NoReturn

from transformers import HfArgumentParser

#: What flags mean that have no text where they are declared.
COMMON = {
    "adam_weight_decay": "Of AdamW.",
    "batch_size": "Images that are drawn side by side.",
    "block_out_channels": "Widths of the network, from the finest level to the coarsest.",
    "checkpoints_total_limit": "How many checkpoints are kept; by default all.",
    "coupling_kwargs": "Parameters of the coupling, in JSON.",
    "dataloader_num_workers": "Processes that read images; 0 reads them in the training itself.",
    "dataset_config_name": "Of a data set with several configurations.",
    "dataset_name": "A Hub id, a folder, a parquet file, or digits.",
    "dataset_split": "Which part of the data set.",
    "device": "Where the networks run.",
    "dtype": "In which precision they run.",
    "ema_decay": "Of the moving average of the weights, which is what is saved.",
    "guidance_scale": "Of classifier-free guidance; 1 is none.",
    "guidance_scales": "Of classifier-free guidance; 1 is none.",
    "hub_model_id": "Name of the repository; by default that of the output folder.",
    "hub_private_repo": "Whether a new repository is private.",
    "hub_token": "Of the Hub; by default the one of `hf auth login`.",
    "image_column": "Name of the column with the images.",
    "image_mode": "Mode to which images are converted; by default their own.",
    "label_column": "Name of the column with the classes; an empty name is none.",
    "learning_rate": "The largest of the schedule.",
    "logging_steps": "Steps between losses.",
    "lora_alpha": "Scale of the adapters; by default their rank.",
    "lora_target_modules": "Layers that get adapters; by default those of attention.",
    "lr_scheduler": "How the learning rate changes.",
    "lr_warmup_steps": "Steps in which the learning rate rises.",
    "max_grad_norm": "Gradients are scaled down to this norm.",
    "max_train_steps": "Steps of the run; goes before the epochs.",
    "noise_level": "Strength of the noise of the steps that are learned.",
    "num_inference_steps": "Steps of a sample.",
    "num_samples": "Samples that are drawn.",
    "num_times": "Times at which the loss is measured.",
    "output": "The file that is written.",
    "output_dir": "The folder for all that is written.",
    "plugins": "Python files or modules that add rows of your own to the tables.",
    "push_to_hub": "Push what is saved to the Hub.",
    "resolution": "Side to which images are scaled and cropped; by default their own.",
    "sample_batch_size": "Samples of the teacher that are drawn side by side.",
    "seed": "Of all that is random.",
    "skip_broken_images": "Leave out, and count, images that cannot be read.",
    "solver": "Of our scheduler.",
    "time_sampler_kwargs": "Parameters of the density of times, in JSON.",
    "train_batch_size": "Images per process and batch.",
}


class Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Names a flag by its usual spelling only, and says defaults."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        shown = [word for word in action.option_strings if "-" not in word.lstrip("-")]
        values = self._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        return f"{', '.join(shown or action.option_strings)} {values}".strip()


class Parser(HfArgumentParser):
    """Reads the flags of a class of arguments, and shows them in groups.

    Args:
        arguments: the dataclass.
    """

    def __init__(self, arguments: type[Any]) -> None:
        super().__init__(arguments, formatter_class=Formatter, allow_abbrev=False)
        self.arguments = arguments
        self.description = inspect.cleandoc(getattr(sys.modules["__main__"], "__doc__", "") or "")
        for action in self._actions:
            action.help = action.help or COMMON.get(action.dest)

    def error(self, message: str) -> NoReturn:
        """End the process with one line, without the usage."""
        sys.stderr.write(f"{self.prog}: error: {message}\n")
        sys.exit(2)

    def groups(self) -> Iterator[tuple[str, list[Action]]]:
        """Yield titles with their flags: first what is the script's own."""
        left = {action.dest: action for action in self._actions}
        homes = {f.name: home(self.arguments, f.name) for f in fields(self.arguments)}
        for kind in self.arguments.__mro__[:-1]:
            own = [left.pop(name) for name, place in homes.items() if place is kind]
            title = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
            yield "This script" if title.startswith("Command line") else title, own
        yield "Every script", list(left.values())

    def format_help(self) -> str:
        """Return the description and the groups."""
        shown = self._get_formatter()
        shown.add_text(self.description)
        for title, actions in self.groups():
            shown.start_section(title)
            shown.add_arguments(actions)
            shown.end_section()
        return shown.format_help()


def home(arguments: type[Any], name: str) -> type[Any]:
    """Return the first class of arguments that has a flag."""
    kinds = arguments.__mro__
    return [kind for kind in kinds if name in vars(kind).get("__annotations__", {})][-1]
