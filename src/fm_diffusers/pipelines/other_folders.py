"""Folders that are no saved pipeline: what they are instead, and what to pass."""

from pathlib import Path

#: Files that tell what a folder without a saved pipeline is, and the way from there.
OTHER_FOLDERS = {
    "pytorch_lora_weights.safetensors": "it holds adapters: load_lora_weights takes them into "
    "the pipeline that they were trained for",
    "modular_model_index.json": "it is a modular pipeline, whose components may lie elsewhere: "
    "FlowMatchingModularPipeline.from_pretrained takes it",
    "scheduler_config.json": "it is the scheduler of one: pass the folder above",
    "config.json": "it is one model of one: pass the folder above",
    "tokenizer_config.json": "it is the tokenizer of one: pass the folder above",
}


def why_not_saved(folder: Path) -> str:
    """Return what a folder without a saved pipeline is instead, and what to pass."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    indices = [*folder.glob("*/model_index.json")] or [*folder.glob("*/*/model_index.json")]
    below = [str(path.parent) for path in sorted(indices)]
    states = [path.name for path in (*inside, folder) if path.name.startswith("checkpoint-")]
    if not inside:
        return "it is empty: a training writes its pipeline at the end"
    if below:
        return f"but {', '.join(below[:5])} below it {'are' if below[1:] else 'is'}: pass that"
    if Path(folder.parent, "model_index.json").is_file():
        return f"but {folder.parent} above it is: pass that"
    known = [reason for name, reason in OTHER_FOLDERS.items() if Path(folder, name).is_file()]
    if known:
        return known[0]
    if states:
        return (
            f"{states[0]} is the state of a training that has not ended: go on with it by "
            "--resume_from_checkpoint latest, the pipeline is written at the end"
        )
    return (
        "it has no model_index.json: pass the folder that save_pretrained wrote (the "
        "--output_dir of a training), or a Hub id"
    )
