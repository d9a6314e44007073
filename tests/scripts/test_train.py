"""Each training stage through its command line: train, be cut off, resume, and end with the very weights of an uninterrupted run."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import load_dataset
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier
from lsdm_diffusers.data.dataset import FEATURES, encode_row, nodule_crops, write_shard
from lsdm_diffusers.data.lidc import LidcNodule
from lsdm_diffusers.data.lidc.prepare import nodule_entry
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.training.data import StreamedRows

from ..conftest import RATINGS, TRAINING, assert_same_weights, sample, tiny_pipeline
from ..hub_stand_in import stand_in_hub

STAGES = {
    "train_spade_gan.py": (
        "--block_out_channels",
        8,
        8,
        16,
        "--norm_num_groups",
        4,
        "--spade_hidden_channels",
        8,
        "--disc_channels",
        4,
        "--crop_size",
        64,
        "--perceptual",
        "none",
    ),
    "train_autoencoder.py": (
        "--block_out_channels",
        8,
        8,
        16,
        "--norm_num_groups",
        4,
        "--crop_size",
        32,
        "--perceptual",
        "none",
    ),
    "train_classifier.py": ("--feature", "malignancy", "--dropout", 0, "--augmentation_views", 1),
    "train_unet.py": (
        "--block_out_channels",
        16,
        32,
        "--attention_levels",
        0,
        0,
        "--norm_num_groups",
        8,
        "--attention_head_dim",
        8,
        "--crop_size",
        64,
    ),
}
WITHOUT_VAE = ("train_autoencoder.py", "train_spade_gan.py")
WEIGHTS = {script: "diffusion_pytorch_model.safetensors" for script in STAGES} | {
    "train_unet.py": "pipeline/unet/diffusion_pytorch_model.safetensors",
    "train_spade_gan.py": "pipeline/spade_generator/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    tiny_pipeline().vae.save_pretrained(folder)
    return folder


def command_of(script, cache, *arguments, num_processes=1, hub=None):
    """The command line of a script under `accelerate launch` (torchrun for several processes), and its environment."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--dynamo_backend",
        "no",
    ]
    command += ["--mixed_precision", "no", "--cpu"]
    if (
        num_processes > 1
    ):  # accelerate launches several CPU processes by MPI only; its Accelerator takes those of torchrun just as well
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(num_processes),
        ]
    command += [str(TRAINING / script), *map(str, arguments)]
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
    }
    environment.update({"ACCELERATE_USE_CPU": "true", **(hub or {})})
    return command, environment


def launch(script, cache, *arguments, num_processes=1, hub=None):
    command, environment = command_of(script, cache, *arguments, num_processes=num_processes, hub=hub)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.fixture(scope="module", params=[16, 8], ids=["16-bit", "8-bit"])
def prepared(request, tmp_path_factory):
    """A dataset as prepare_lidc.py writes it: slices, the rated nodules inside them, no crops."""
    folder, generator = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    for split in ("train", "validation"):
        rows = []
        for rating in (1, 2, 3, 4, 5):
            mask = np.zeros((96, 96), dtype=bool)
            mask[2:10, 80:90] = True  # near the border
            labels = np.full((96, 96), 4, np.uint8)
            labels[mask] = SemanticLabel.for_malignancy(rating)
            hu = np.where(mask, 0, -850) + generator.integers(-30, 30, (96, 96))
            nodule = LidcNodule(f"1-{rating}", (1, 2), {name: (rating, rating) for name in RATINGS}, 6.0, {})
            columns = {name: None for name in FEATURES if name not in ("image", "semantic_map", "nodules")}
            rows.append(
                encode_row(
                    hu,
                    labels,
                    request.param,
                    **{**columns, "patient_id": "p", "nodules": [nodule_entry(nodule, mask)]},
                )
            )
        write_shard(folder / "data" / f"{split}-p.parquet", rows)
    return folder


def test_every_stage_trains_on_a_prepared_dataset(tmp_path, train, prepared):
    steps = ("--max_train_steps", 1, "--train_batch_size", 2, "--dataset_name", prepared)
    sizes = ("--block_out_channels", 8, 8, 16, "--norm_num_groups", 4, "--crop_size", 32, "--perceptual", "none")
    train("train_autoencoder.py", *steps, *sizes, "--output_dir", tmp_path / "vae")
    train(
        "train_classifier.py",
        *steps,
        "--pretrained_vae",
        tmp_path / "vae",
        "--feature",
        "texture",
        "--output_dir",
        tmp_path / "texture",
    )
    assert NoduleClassifier.from_pretrained(tmp_path / "texture").config.objective == "regression"
    sizes = (
        "--block_out_channels",
        16,
        32,
        "--attention_levels",
        0,
        0,
        "--norm_num_groups",
        8,
        "--attention_head_dim",
        8,
        "--crop_size",
        64,
    )
    train("train_unet.py", *steps, *sizes, "--pretrained_vae", tmp_path / "vae", "--output_dir", tmp_path / "unet")
    assert LSDMGuidedPipeline.from_pretrained(tmp_path / "unet" / "pipeline").vae.config.latent_channels == 3


def test_crops_are_cut_around_nodules(prepared):
    crops = list(nodule_crops(load_dataset(str(prepared), split="train")))
    assert [nodule["malignancy"] for _, nodule in crops] == [1, 2, 3, 4, 5]
    for crop, _ in crops:  # moved inside the frame: rows 0..63, columns 32..95
        assert crop.shape == (64, 64)
        assert np.abs((crop[2:10, 48:58] + 1) * 912 - 1024).max() < 40 and ((crop[20:] + 1) * 912 - 1024).max() < -800


def losses(folder):
    """The loss of each step as the newest tensorboard file of a run has it."""
    newest = max(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
    events = EventAccumulator(str(newest))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


def train_kill_and_resume(tmp_path, script, common, weights):
    """A run that is killed and resumed has the losses and weights of one that is not, and keeps `--checkpoints_total_limit` checkpoints."""
    common = [
        *common,
        "--max_train_steps",
        12,
        "--checkpointing_steps",
        2,
        "--validation_steps",
        12,
        "--report_to",
        "tensorboard",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launch(script, tmp_path, *common, "--output_dir", whole)
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]
    command, environment = command_of(script, tmp_path, *common, "--output_dir", killed)
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while run.poll() is None and not any(killed.glob("checkpoint-*")):
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (killed / weights).exists()
    done = max(int(path.name.split("-")[1]) for path in killed.glob("checkpoint-*"))
    launch(script, tmp_path, *common, "--output_dir", killed, "--resume_from_checkpoint", "latest")
    assert done < 12 and losses(killed) == {step: loss for step, loss in losses(whole).items() if step > done}
    assert_same_weights(whole / weights, killed / weights)
    return whole


def test_autoencoder(tmp_path, dataset):
    common = [
        "--dataset_name",
        dataset,
        "--block_out_channels",
        8,
        8,
        16,
        "--norm_num_groups",
        4,
        "--crop_size",
        32,
        "--train_batch_size",
        2,
    ]
    common += ["--perceptual", "efficientnet", "--difference_weight", 1, "--disc_start", 2, "--disc_channels", 4]
    folder = train_kill_and_resume(tmp_path, "train_autoencoder.py", common, "diffusion_pytorch_model.safetensors")
    assert (folder / "validation-12.png").is_file() and (folder / "validation.json").is_file()
    vae = tiny_pipeline().vae.from_pretrained(folder)
    assert vae.config.scaling_factor != 0.18215


def test_slices_decoded_as_drawn_train_the_same_weights(tmp_path, train, dataset):
    common = [
        "--dataset_name",
        dataset,
        "--block_out_channels",
        8,
        8,
        16,
        "--norm_num_groups",
        4,
        "--crop_size",
        32,
        "--perceptual",
        "none",
    ]
    common += ["--train_batch_size", 2, "--max_train_steps", 2]
    train("train_autoencoder.py", *common, "--output_dir", tmp_path / "kept")
    train("train_autoencoder.py", *common, "--output_dir", tmp_path / "drawn", "--no-keep_in_memory")
    assert_same_weights(*(tmp_path / name / "diffusion_pytorch_model.safetensors" for name in ("kept", "drawn")))


def test_classifier(tmp_path, dataset, vae):
    common = ["--dataset_name", dataset, "--pretrained_vae", vae, "--feature", "malignancy", "--train_batch_size", 4]
    common += ["--augmentation_views", 9, "--label_balance", 0.5, "--timestep_power", 2, "--hu_thresholds", -500, -100]
    common += ["--contrast_jitter", 0.5, 1.5, "--sharpness_jitter", 1, "--label_smoothing", 0.1]
    folder = train_kill_and_resume(tmp_path, "train_classifier.py", common, "diffusion_pytorch_model.safetensors")
    config = NoduleClassifier.from_pretrained(folder).config
    assert config.feature == "malignancy" and config.hu_thresholds == [-500, -100]
    assert json.loads((folder / "validation.json").read_text())["t20"].keys() == {
        "auc_ge3",
        "auc_ge4",
        "accuracy_ge3",
        "ece",
    }


def test_unet(tmp_path, dataset, vae, semantic_map):
    common = [
        "--dataset_name",
        dataset,
        "--pretrained_vae",
        vae,
        "--block_out_channels",
        16,
        32,
        "--attention_levels",
        0,
        1,
    ]
    common += [
        "--layers_per_block",
        1,
        "--norm_num_groups",
        8,
        "--attention_head_dim",
        8,
        "--spade_hidden_channels",
        8,
        "--crop_size",
        64,
    ]
    common += [
        "--snr_gamma",
        5,
        "--label_dropout",
        0.3,
        "--train_batch_size",
        2,
        "--random_flip",
        "--blank_background",
        "--prediction_type",
        "v_prediction",
    ]
    folder = train_kill_and_resume(
        tmp_path, "train_unet.py", common, "pipeline/unet/diffusion_pytorch_model.safetensors"
    )
    assert (folder / "validation-12.png").is_file() and (folder / "log.jsonl").read_text().count("\n") == 1
    pipe = LSDMGuidedPipeline.from_pretrained(folder / "pipeline")
    assert sample(pipe, semantic_map).shape == (1, 96, 128)


def test_a_classifier_goes_on_from_that_of_another_feature(tmp_path, train, dataset, vae):
    common = [
        "--dataset_name",
        dataset,
        "--pretrained_vae",
        vae,
        "--train_batch_size",
        2,
        "--augmentation_views",
        1,
        "--max_train_steps",
        1,
    ]
    train("train_classifier.py", *common, "--feature", "malignancy", "--output_dir", tmp_path / "malignancy")
    common += ["--pretrained_classifier", tmp_path / "malignancy", "--learning_rate", 0, "--adam_weight_decay", 0]
    train("train_classifier.py", *common, "--feature", "spiculation", "--output_dir", tmp_path / "spiculation")
    before, after = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("malignancy", "spiculation")
    )
    assert after["head.weight"].shape[0] == 1
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("head."))


def test_shuffled_labels_train_other_weights_and_are_validated_against_the_true_ones(tmp_path, train, dataset, vae):
    common = [
        *STAGES["train_classifier.py"],
        "--dataset_name",
        dataset,
        "--pretrained_vae",
        vae,
        "--train_batch_size",
        2,
        "--max_train_steps",
        2,
    ]
    for name, flags in {"still": ("--learning_rate", 0), "moved": ("--learning_rate", 1e-3)}.items():
        for shuffle in ([], ["--shuffle_labels"]):
            train("train_classifier.py", *common, *flags, *shuffle, "--output_dir", tmp_path / f"{name}{len(shuffle)}")
    figures = [json.loads((tmp_path / f"still{shuffled}" / "log.jsonl").read_text()) for shuffled in (0, 1)]
    assert figures[0] | {"seconds": 0} == figures[1] | {"seconds": 0}  # of the same weights
    weights = [load_file(tmp_path / f"moved{shuffled}" / "diffusion_pytorch_model.safetensors") for shuffled in (0, 1)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--augmentation_views", 0), "--augmentation_views is 0, but at least 1 is needed"),
        (("--contrast_jitter", 1.5, 0.5), r"--contrast_jitter is \[1.5, 0.5\], but 0 < LOW <= HIGH is needed"),
        (("--sharpness_jitter", -1), "--sharpness_jitter is -1.0, but at least 0 is needed"),
        (("--label_smoothing", 2), r"--label_smoothing is 2.0, but 0..1 is needed"),
        (
            ("--label_smoothing", 0.1, "--objective", "regression"),
            "--label_smoothing is 0.1, but --objective regression has no classes to smooth",
        ),
    ],
)
def test_a_classifier_refuses_wrong_flags(tmp_path, train, dataset, vae, flags, message):
    common = [
        *STAGES["train_classifier.py"],
        "--dataset_name",
        dataset,
        "--pretrained_vae",
        vae,
        "--output_dir",
        tmp_path / "out",
    ]
    with pytest.raises(SystemExit, match=message):
        train("train_classifier.py", *common, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("split", "nodules", "message"),
    [
        ("train", {"malignancy": None}, r"10 of 10 nodules in the split train without a rating 1..5 of malignancy"),
        ("validation", {"malignancy": 0.0}, r"10 of 10 nodules in the split validation without a rating 1..5"),
        ("validation", None, "no nodules in the split validation"),
    ],
)
def test_a_classifier_needs_ratings_and_says_so_first(tmp_path, train, dataset, split, nodules, message):
    def changed(row):
        return {"nodules": [] if nodules is None else [entry | nodules for entry in row["nodules"]]}

    splits = load_dataset(str(dataset))
    splits[split] = splits[split].map(changed, features=splits[split].features)
    if nodules is None:
        splits[split] = splits[split].filter(lambda kind: kind != "nodule", input_columns="kind")
    (tmp_path / "unrated").mkdir()
    for name, rows in splits.items():
        rows.to_parquet(tmp_path / "unrated" / f"{name}-00000-of-00001.parquet")
    flags = [*STAGES["train_classifier.py"], "--dataset_name", tmp_path / "unrated"]
    flags += ["--pretrained_vae", tmp_path / "none", "--output_dir", tmp_path / "out"]  # it is not even looked for
    with pytest.raises(SystemExit, match=message):
        train("train_classifier.py", *flags)
    assert not (tmp_path / "out").exists()


def test_jitter_changes_contrast_against_lung_and_sharpness():
    jittered = script("train_classifier").jittered
    generator = np.random.default_rng(0)
    hu = np.full((64, 16, 16), -850.0)
    hu[:, 4:12, 4:12] = -350.0  # 500 HU above lung
    hu[:, 0] = -1000.0
    crops = scaled_hu(hu).astype(np.float32)
    np.testing.assert_array_equal(jittered(crops, [1, 1], 0, generator), crops)
    changed = (jittered(crops, [0.5, 1.5], 0, generator) + 1) * 912 - 1024
    contrast = changed[:, 8, 8] + 850
    assert contrast.min() > 249.9 and contrast.max() < 750.1 and contrast.std() > 100
    np.testing.assert_allclose(changed[:, :3, :], hu[:, :3, :], atol=0.01)  # lung and air stay
    steps = np.abs(np.diff(jittered(crops, [1, 1], 1, generator)[:, 8], axis=1)).max(axis=1)
    before = np.abs(np.diff(crops[0, 8])).max()
    assert steps.min() < 0.8 * before and steps.max() > 1.2 * before


@pytest.fixture(scope="module")
def train_unet():
    """The U-Net's script as a module."""
    return script("train_unet")


def script(name):
    """A training script as a module."""
    spec = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights(train_unet, prediction_type):
    """Of an error e in the prediction, x0 is off by e sigma/alpha (noise) or e sigma (v); min-SNR weights its square by min(SNR, gamma)."""
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0205, prediction_type=prediction_type
    )
    batch = {
        "latents": torch.zeros(1, 3, 4, 4),
        "map_latents": torch.zeros(1, 3, 4, 4),
        "labels": torch.zeros(1, 4, 4, dtype=torch.long),
    }
    noise = torch.zeros(1, 3, 4, 4)  # with latents 0: both targets are 0

    def unet(sample, timesteps, semantic_map):
        return SimpleNamespace(sample=torch.full_like(sample[:, :3], 2.0))

    for t in (5, 300, 900):
        alpha_bar = scheduler.alphas_cumprod[t].item()
        snr = alpha_bar / (1 - alpha_bar)
        error_of_x0 = 2.0 * ((1 - alpha_bar) / alpha_bar if prediction_type == "epsilon" else 1 - alpha_bar) ** 0.5
        loss = train_unet.diffusion_loss(unet, batch, noise, torch.tensor([t]), scheduler, 1.0, snr_gamma=5.0)
        assert loss.item() == pytest.approx(min(snr, 5.0) * error_of_x0**2, rel=1e-4)


def test_label_dropout_drops_the_map_or_one_label(train_unet):
    labels = torch.tensor([[0, 1, 4, 7]]).expand(2000, 4, 4).clone()
    batch = {"labels": labels.clone(), "map_latents": torch.ones(2000, 3, 4, 4)}
    train_unet.drop_labels(batch, 0.4, np.random.default_rng(0))
    dropped = batch["map_latents"][:, 0] == 0
    assert (batch["labels"][dropped] == SemanticLabel.BACKGROUND).all() and torch.equal(
        batch["labels"][~dropped], labels[~dropped]
    )
    columns = dropped[:, 0].sum(dim=1)  # each label is one column
    whole, single = (columns == 4).float().mean().item(), (columns == 1).float().mean().item()
    assert (
        whole == pytest.approx(0.2, abs=0.03)
        and single == pytest.approx(0.2, abs=0.03)
        and set(columns.tolist()) == {0, 1, 4}
    )


def test_the_decoder_is_trained_alone(tmp_path, train, dataset, vae):
    """Latents, and so what the U-Net has learnt, stay as they are."""
    common = [
        "--train_data_dir",
        dataset,
        "--max_train_samples",
        11,
        "--pretrained_vae",
        vae,
        "--freeze_encoder",
        "--crop_size",
        64,
        "--perceptual",
        "none",
    ]
    train(
        "train_autoencoder.py",
        *common,
        "--train_batch_size",
        1,
        "--max_train_steps",
        2,
        "--output_dir",
        tmp_path / "vae",
    )
    before, after = AutoencoderKL.from_pretrained(vae), AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert after.config.scaling_factor == before.config.scaling_factor
    same = {name: torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items()}
    assert all(same[name] for name in same if name.startswith(("encoder", "quant_conv")))
    assert not any(same[name] for name in same if name.startswith("decoder") and name.endswith("conv.weight"))


def test_latents_encoded_as_drawn_train_the_same_weights(tmp_path, train, dataset, vae):
    common = [
        "--dataset_name",
        dataset,
        "--pretrained_vae",
        vae,
        "--block_out_channels",
        16,
        32,
        "--attention_levels",
        0,
        0,
        "--norm_num_groups",
        8,
    ]
    common += [
        "--attention_head_dim",
        8,
        "--crop_size",
        64,
        "--train_batch_size",
        2,
        "--max_train_steps",
        2,
        "--random_flip",
    ]
    train("train_unet.py", *common, "--output_dir", tmp_path / "cached")
    train("train_unet.py", *common, "--output_dir", tmp_path / "live", "--no-cache_latents")
    assert (tmp_path / "cached" / "latents" / "train.safetensors").exists()
    assert not (tmp_path / "live" / "latents" / "train.safetensors").exists()
    name = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert_same_weights(tmp_path / "cached" / name, tmp_path / "live" / name)


@pytest.mark.parametrize("script", ["train_classifier.py", "train_unet.py"])
def test_a_stream_trains_the_same_weights(tmp_path, train, dataset, vae, script):
    """They encode the rows once, whether these come from the disk or as a stream."""
    common = [
        *STAGES[script],
        "--dataset_name",
        dataset,
        "--pretrained_vae",
        vae,
        "--train_batch_size",
        2,
        "--max_train_steps",
        2,
    ]
    train(script, *common, "--output_dir", tmp_path / "table")
    train(script, *common, "--output_dir", tmp_path / "stream", "--streaming")
    assert_same_weights(tmp_path / "table" / WEIGHTS[script], tmp_path / "stream" / WEIGHTS[script])


@pytest.mark.parametrize("script", WITHOUT_VAE)
def test_a_streamed_run_resumes_where_it_was(tmp_path, train, dataset, script):
    common = [
        *STAGES[script],
        "--dataset_name",
        dataset,
        "--streaming",
        "--train_batch_size",
        1,
        "--max_train_steps",
        6,
    ]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(script, *common, "--output_dir", whole, "--checkpointing_steps", 3)
    resumed.mkdir()
    (whole / "checkpoint-3").rename(resumed / "checkpoint-3")
    train(script, *common, "--output_dir", resumed, "--resume_from_checkpoint", "latest")
    assert_same_weights(*(folder / WEIGHTS[script] for folder in (whole, resumed)))


def test_rows_of_a_stream_have_their_number(dataset, no_pause):
    stream = load_dataset(str(dataset), split="train", streaming=True)
    first, second = StreamedRows(stream, seed=0), StreamedRows(stream, seed=0)
    every = [np.asarray(first[number]["image"]) for number in range(36)]  # three epochs of twelve rows
    for number in (1, 17, 35):
        np.testing.assert_array_equal(np.asarray(second[number]["image"]), every[number])
    epochs = [[image.tobytes() for image in every[start : start + 12]] for start in (0, 12, 24)]
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2]) and epochs[0] != epochs[1] != epochs[2]
    with pytest.raises(IndexError, match="`number` is 5, but row 35"):
        second[5]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (
            "train_autoencoder.py",
            ("--lr_scheduler", "cosine", "--lr_warmup_steps", 1, "--layers_per_block", 2, "--kl_weight", 1e-3),
        ),
        (
            "train_classifier.py",
            ("--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 1, "--objective", "regression"),
        ),
        (
            "train_unet.py",
            ("--lr_scheduler", "linear", "--lr_warmup_steps", 1, "--spade_blocks", "none", "--nodule_weight", 4),
        ),
    ],
)
def test_flags_that_all_scripts_share(tmp_path, train, dataset, vae, script, flags):
    common = [
        *STAGES[script],
        "--train_data_dir",
        dataset,
        "--train_batch_size",
        2,
        "--max_train_steps",
        2,
        "--max_train_samples",
        11,
    ]
    common += [] if script == "train_autoencoder.py" else ["--pretrained_vae", vae]
    common += [
        "--mixed_precision",
        "bf16",
        "--gradient_checkpointing",
        "--gradient_accumulation_steps",
        2,
        "--max_grad_norm",
        0.5,
    ]
    common += ["--no-use_ema", "--seed", 3, "--validation_steps", 1]
    train(script, *common, *flags, "--output_dir", tmp_path)
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2
    weights = "pipeline/unet" if script == "train_unet.py" else "."
    assert all(
        tensor.isfinite().all()
        for tensor in load_file(tmp_path / weights / "diffusion_pytorch_model.safetensors").values()
    )


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train_autoencoder.py", ("--freeze_encoder",), "--freeze_encoder needs --pretrained_vae"),
        ("train_autoencoder.py", ("--max_train_samples", 0), "--max_train_samples is 0, but at least 1 is needed"),
        (
            "train_classifier.py",
            ("--feature", "texture", "--pretrained_classifier", "CLASSIFIER"),
            "has other sizes than the flags ask for",
        ),
        ("train_unet.py", ("--streaming", "--no-cache_latents"), "it cannot be used with --no-cache_latents"),
        ("train_unet.py", ("--label_dropout", 2), "--label_dropout is 2.0, but 0..1 is needed"),
        ("train_unet.py", ("--snr_gamma", 0), "--snr_gamma is 0.0, but a number above 0 is needed"),
    ],
)
def test_wrong_flags_say_what_is_allowed(tmp_path, train, dataset, vae, script, flags, message):
    common = [] if script == "train_autoencoder.py" else ["--pretrained_vae", vae]
    if "CLASSIFIER" in flags:
        NoduleClassifier(block_out_channels=(24, 48)).save_pretrained(tmp_path / "classifier")
        flags = [tmp_path / "classifier" if flag == "CLASSIFIER" else flag for flag in flags]
    with pytest.raises(SystemExit, match=message):
        train(script, "--dataset_name", dataset, *common, *flags, "--output_dir", tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, train, dataset, vae):
    broken = AutoencoderKL.from_pretrained(vae)
    broken.decoder.conv_out.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "vae")
    run = ("--dataset_name", dataset, "--output_dir", tmp_path / "run", "--max_train_steps", 2)
    with pytest.raises(RuntimeError, match="The loss is nan at step 0; the last good checkpoint is in"):
        train("train_classifier.py", *run, "--pretrained_vae", tmp_path / "vae", *STAGES["train_classifier.py"])


def test_a_run_is_pushed_to_the_hub(tmp_path, dataset, vae):
    """Weights and a card filled from the run, no checkpoints, no paths of this machine."""
    common = [
        "--dataset_name",
        dataset,
        "--pretrained_vae",
        vae,
        "--block_out_channels",
        16,
        32,
        "--attention_levels",
        0,
        0,
        "--norm_num_groups",
        8,
    ]
    common += [
        "--attention_head_dim",
        8,
        "--crop_size",
        64,
        "--train_batch_size",
        2,
        "--max_train_steps",
        1,
        "--checkpointing_steps",
        1,
    ]
    with stand_in_hub(tmp_path / "home") as (environment, hub):
        pushing = ("--output_dir", tmp_path / "unet", "--push_to_hub", "--hub_model_id", "user/lsdm")
        launch("train_unet.py", tmp_path, *common, *pushing, hub=environment)
    received = hub.repositories["user/lsdm"]["main"]
    assert {
        "model_index.json",
        "README.md",
        "validation.png",
        "unet/diffusion_pytorch_model.safetensors",
    } <= received.keys()
    assert not any("checkpoint" in name or "latents" in name for name in received)
    card = received["README.md"].decode()
    assert (
        'from_pretrained("user/lsdm")' in card and "| validation_loss |" in card and "--max_train_steps` 1\n" in card
    )
    assert not [
        name
        for name, content in received.items()
        if str(tmp_path).encode() in content or str(dataset).encode() in content
    ]
    assert "TO FILL IN: whose scans these are" in card  # this dataset has no card to say so


@pytest.mark.parametrize("script", STAGES)
def test_two_processes_are_two_accumulated_passes(tmp_path, train, dataset, vae, script):
    """Both see the same crops in each optimiser step, so the weights agree to rounding: the processes do share their gradients."""
    common = [*STAGES[script], "--dataset_name", dataset, "--train_batch_size", 2, "--max_train_steps", 2]
    common += [] if script in WITHOUT_VAE else ["--pretrained_vae", vae]
    launch(script, tmp_path, *common, "--output_dir", tmp_path / "two", num_processes=2)
    train(script, *common, "--output_dir", tmp_path / "accumulated", "--gradient_accumulation_steps", 2)
    train(script, *common, "--output_dir", tmp_path / "one")
    two, accumulated, one = (load_file(tmp_path / name / WEIGHTS[script]) for name in ("two", "accumulated", "one"))
    difference = sum((two[name] - accumulated[name]).abs().sum().item() for name in two)
    alone = sum((two[name] - one[name]).abs().sum().item() for name in two)
    assert difference < 0.02 * alone  # what the second process adds is there
