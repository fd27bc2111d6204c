"""The table of all that is measured: how it is measured again, and which page quotes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What is measured by one command.

    Attributes:
        command: after `python`; `{out}` is the folder of the results, `{mnist}` the data set.
        results: files of the repository that it gives anew; in `{out}` they have the same names.
        page: which quotes them.
        minutes: of one idle core, roughly.
        needs: names in `NEEDS`.
    """

    command: str
    results: tuple[str, ...]
    page: str
    minutes: float
    needs: tuple[str, ...] = ()


def tables(name: str, picture: bool = False) -> tuple[str, ...]:
    """Return the files of a benchmark of this name."""
    ends = ("csv", "md", "png") if picture else ("csv", "md")
    return tuple(f"benchmarks/results/{name}.{end}" for end in ends)


TRAIN = "examples/train_mnist.py --train_batch_size 64"
DIGITS = f"{TRAIN} --dataset_name digits --max_train_steps 3000"
MAP = "examples/train_few_steps.py"
MNIST_MEAN_FLOW = (
    "examples/train_mnist.py --dataset_name {mnist} --objective mean_flow "
    '--prediction_type sample --time_sampler_kwargs \'{{"mean": -1.4, "std": 1.2}}\' '
    "--train_batch_size 16 --reference_batch_size 256 --learning_rate 0.0006 "
    "--block_out_channels 16 32 64"
)
SCRIPT = "huggingface/diffusers/v0.42.1/examples/unconditional_image_generation"

#: What parts need first: files or folders, and the command (after `python`) that makes each.
NEEDS = {
    "outputs/mnist-600-steps": f"{TRAIN} --dataset_name {{mnist}} --max_train_steps 600",
    "outputs/mnist-narrow": f"{TRAIN} --dataset_name {{mnist}} --max_train_steps 2000 "
    "--block_out_channels 16 32 32",
    "outputs/mnist-straight": "examples/reflow.py --model pretrained/mnist --num_pairs 6000 "
    "--pair_steps 10 --max_train_steps 1200 --train_batch_size 64",
    "outputs/digits": f"{DIGITS} --block_out_channels 32 64",
    "outputs/digits-map": f"{MAP} --model outputs/digits --guidance_scale 2 "
    "--num_trajectories 4000 --max_train_steps 2000",
    **{
        f"outputs/mean-flow-{seed}": f"{TRAIN} --dataset_name digits --objective mean_flow "
        f"--max_train_steps 2000 --block_out_channels 32 64 --seed {seed}"
        for seed in range(3)
    },
    "outputs/digits-mean-flow": f"{MAP} --model outputs/digits --guidance_scale 2 "
    "--num_trajectories 4000 --max_train_steps 2000 --objective mean_flow",
    "outputs/mean-flow-mnist": f"{MNIST_MEAN_FLOW} --max_train_steps 8000",
    "outputs/unet": f"{DIGITS} --block_out_channels 16 32",
    "outputs/dit": f"{DIGITS} --backbone transformer --attention_head_dim 16",
    "outputs/mnist-euler": '-c "import diffusers, fm_diffusers, sys; '
    "pipe = fm_diffusers.FlowMatchingPipeline.from_pretrained('pretrained/mnist'); "
    "pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(); "
    'pipe.save_pretrained(sys.argv[-1])"',
    "outputs/digits-noise": f"{DIGITS} --block_out_channels 32 64 --label_column= "
    "--path discrete --prediction_type epsilon",
    "outputs/digits-ddpm": '-c "import diffusers as d, sys; '
    "unet = d.UNet2DModel.from_pretrained('outputs/digits-noise/unet'); "
    'd.DDPMPipeline(unet, d.DDPMScheduler()).save_pretrained(sys.argv[-1])"',
    "outputs/train_unconditional.py": '-c "from urllib.request import urlretrieve as get; get('
    f"'https://raw.githubusercontent.com/{SCRIPT}/train_unconditional.py', "
    "'outputs/train_unconditional.py')\"",
}

PARTS = {
    "gaussian_sde": Part(
        "-m benchmarks.samplers.gaussian_sde --output_dir {out}",
        tables("gaussian_sde", picture=True),
        "docs/samplers.md",
        1,
    ),
    "brownian": Part(
        "-m benchmarks.samplers.brownian --output_dir {out}",
        tables("brownian"),
        "docs/names.md",
        3,
    ),
    "certificate": Part(
        "-m benchmarks.samplers.certificate --output_dir {out}",
        tables("certificate"),
        "docs/certificate.md",
        1,
    ),
    "step": Part(
        "-m benchmarks.step.cost --output_dir {out}",
        tables("step"),
        "docs/samplers.md",
        2,
    ),
    "flow": Part(
        "examples/animate.py --seed 6 --output {out}/flow.gif",
        ("docs/images/flow.gif",),
        "README.md",
        1,
    ),
    "panel": Part(
        "-m benchmarks.networks.report --output {out}/samplers.png",
        ("docs/images/samplers.png",),
        "README.md",
        0.2,
    ),
    "theory": Part(
        "examples/plot_theory.py --output_dir {out}",
        tuple(f"docs/images/{name}.png" for name in ("regression", "predictions", "ends")),
        "docs/theory/predictions.md",
        1,
    ),
    "paths": Part(
        "examples/plot_paths.py --output_dir {out}",
        tuple(
            f"docs/images/{name}.png"
            for name in ("conditional_and_marginal", "posterior_weights", "equal_marginals")
        ),
        "docs/theory/paths.md",
        0.3,
    ),
    "samples": Part(
        "examples/sample_mnist.py --model pretrained/mnist --output_dir {out}",
        ("docs/images/ode_and_sde.png",),
        "docs/index.md",
        0.5,
    ),
    "swap_flow": Part(
        "examples/swap_scheduler.py --model outputs/mnist-euler --trust_remote_code true "
        '--call_kwargs \'{{"class_labels": [3, 7, 8, 2], "guidance_scale": 2}}\' '
        "--num_inference_steps 4 10 50 --output {out}/swap_flow.png",
        ("docs/images/swap_flow.png",),
        "README.md",
        0.3,
        ("outputs/mnist-euler",),
    ),
    "swap_table": Part(
        "examples/swap_scheduler.py --model outputs/digits-ddpm "
        "--call_kwargs '{{\"batch_size\": 4}}' --num_inference_steps 10 20 100 "
        "--output {out}/swap_table.png",
        ("docs/images/swap_table.png",),
        "docs/swap.md",
        5,
        ("outputs/digits-noise", "outputs/digits-ddpm"),
    ),
    "sde": Part(
        "-m benchmarks.samplers.sde --mnist {mnist} --output_dir {out}",
        tables("sde", picture=True),
        "docs/samplers.md",
        5,
    ),
    "card": Part(
        "examples/evaluate.py --model pretrained/mnist --dataset_name {mnist} --test_split test "
        "--guidance_scales 1 2 --num_inference_steps 4 10 20 --num_likelihood_images 0 "
        "--output_dir {out}/card --overwrite_output_dir",
        ("pretrained/mnist/evaluation.json", "pretrained/mnist/evaluation.png"),
        "pretrained/mnist/README.md",
        4,
    ),
    "card_of_map": Part(
        "examples/evaluate.py --model pretrained/mnist-one-step --dataset_name {mnist} "
        "--test_split test --num_inference_steps 1 2 4 --num_likelihood_images 0 "
        "--output_dir {out}/card_of_map --overwrite_output_dir",
        tuple(f"pretrained/mnist-one-step/evaluation.{end}" for end in ("json", "png")),
        "pretrained/mnist-one-step/README.md",
        2,
    ),
    "card_of_mean_flow": Part(
        "examples/evaluate.py --model pretrained/mnist-mean-flow --dataset_name {mnist} "
        "--test_split test --solvers flow_map predictor_corrector --num_inference_steps 1 4 20 "
        "--num_likelihood_images 0 --output_dir {out}/card_of_mean_flow --overwrite_output_dir",
        tuple(f"pretrained/mnist-mean-flow/evaluation.{end}" for end in ("json", "png")),
        "pretrained/mnist-mean-flow/README.md",
        3,
    ),
    "loss_by_time": Part(
        "examples/plot_loss_by_time.py --model outputs/mnist-600-steps --dataset_name {mnist} "
        "--output {out}/loss_by_time.png",
        ("docs/images/loss_by_time.png",),
        "docs/training.md",
        10,
        ("outputs/mnist-600-steps",),
    ),
    "references": Part(
        "-m benchmarks.training.references --dataset_name {mnist} --output_dir {out}",
        tables("references"),
        "docs/training.md",
        0.5,
    ),
    "one_evaluation_mnist": Part(
        "-m benchmarks.networks.one_evaluation --teacher pretrained/mnist "
        "--maps pretrained/mnist-mean-flow pretrained/mnist-one-step "
        "--straight outputs/mnist-straight --dataset_name {mnist} --converged_steps 24 "
        "--calibration_samples 96 --num_samples 500 --picture --name one_evaluation_mnist "
        "--output_dir {out}",
        (*tables("one_evaluation_mnist"), "docs/images/one_evaluation_mnist.png"),
        "docs/few_evaluations.md",
        20,
        ("outputs/mnist-straight",),
    ),
    "one_evaluation_digits": Part(
        "-m benchmarks.networks.one_evaluation --teacher outputs/digits "
        "--maps outputs/digits-map --dataset_name digits --converged_steps 60 "
        "--name one_evaluation_digits --output_dir {out}",
        tables("one_evaluation_digits"),
        "docs/few_evaluations.md",
        10,
        ("outputs/digits", "outputs/digits-map"),
    ),
    "mean_flow_digits": Part(
        "-m benchmarks.networks.one_evaluation --teacher outputs/digits "
        "--maps outputs/mean-flow-0 outputs/mean-flow-1 outputs/mean-flow-2 "
        "--dataset_name digits --converged_steps 60 --calibration_samples 0 "
        "--name mean_flow_digits --output_dir {out}",
        tables("mean_flow_digits"),
        "docs/few_evaluations.md",
        25,
        ("outputs/digits", *(f"outputs/mean-flow-{seed}" for seed in range(3))),
    ),
    "mean_flow_mnist": Part(
        "-m benchmarks.networks.one_evaluation --teacher pretrained/mnist "
        "--maps outputs/mean-flow-mnist pretrained/mnist-mean-flow --dataset_name {mnist} "
        "--converged_steps 24 --calibration_samples 0 --num_samples 500 --name mean_flow_mnist "
        "--output_dir {out}",
        tables("mean_flow_mnist"),
        "docs/few_evaluations.md",
        30,
        ("outputs/mean-flow-mnist",),
    ),
    "mean_flow_of_teacher_digits": Part(
        "-m benchmarks.networks.one_evaluation --teacher outputs/digits "
        "--maps outputs/digits-mean-flow --dataset_name digits --converged_steps 60 "
        "--calibration_samples 0 --name mean_flow_of_teacher_digits --output_dir {out}",
        tables("mean_flow_of_teacher_digits"),
        "docs/few_evaluations.md",
        10,
        ("outputs/digits", "outputs/digits-mean-flow"),
    ),
    "network_sde": Part(
        "-m benchmarks.networks.sde --models outputs/digits --dataset_name digits "
        "--num_samples 449 --seeds 0 1 --output_dir {out}",
        tables("network_sde"),
        "docs/samplers.md",
        10,
        ("outputs/digits",),
    ),
    "network_sde_mnist": Part(
        "-m benchmarks.networks.sde --models pretrained/mnist --dataset_name {mnist} "
        "--diffusions memoryless --peers 'DPM++2M SDE' er_sde --num_samples 400 --seeds 0 1 "
        "--name network_sde_mnist --output_dir {out}",
        tables("network_sde_mnist"),
        "docs/samplers.md",
        20,
    ),
    "inference": Part(
        "-m benchmarks.inference.features --models outputs/dit outputs/unet --output_dir {out}",
        tables("inference"),
        "docs/inference.md",
        10,
        ("outputs/dit", "outputs/unet"),
    ),
    "ode": Part(
        "-m benchmarks.samplers.ode --mnist {mnist} --output_dir {out}",
        tables("ode", picture=True),
        "docs/samplers.md",
        60,
    ),
    "network": Part(
        "-m benchmarks.networks.few_steps --models pretrained/mnist "
        "outputs/mnist-600-steps outputs/mnist-narrow --dataset_name {mnist} "
        "--frechet_samples 200 --frechet_evaluations 4 6 10 --frechet_guidance_scales 1 3 7 "
        "--output_dir {out}",
        tables("network", picture=True),
        "docs/samplers.md",
        75,
        ("outputs/mnist-600-steps", "outputs/mnist-narrow"),
    ),
    "train_quality": Part(
        "-m benchmarks.training.quality --dataset_name {mnist} --num_samples 600 "
        "--output_dir {out}",
        tables("train_quality", picture=True),
        "docs/training.md",
        65,
    ),
    "train_speed": Part(
        "-m benchmarks.training.speed --dataset_name {mnist} --train_batch_size 64 --steps 4 "
        "--rounds 7 --variant_rounds 3 --train_unconditional outputs/train_unconditional.py "
        "--output_dir {out}",
        tables("train_speed"),
        "docs/training.md",
        5,
        ("outputs/train_unconditional.py",),
    ),
}
