"""A set of `lsdm-synthesize` is a dataset that the training scripts take as it is."""

import numpy as np

from lsdm_diffusers.synthesis import command, job

from ..conftest import tiny_pipeline
from .conftest import WEIGHTS_FILE


def test_a_classifier_trains_for_three_steps(tmp_path, train, vae, monkeypatch):
    (tmp_path / "maps").mkdir()
    for number in range(3):
        labels = np.full((96, 96), 2, dtype=np.uint8)
        labels[12:84, 10 + number : 80] = 4
        np.save(tmp_path / "maps" / f"{number}.npy", labels)
    recipe = "num_slices: 12\nrows_per_shard: 4\nvalidation: 0.34\nnum_inference_steps: 1\ndiameter_mm: [8, 20]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    for module in (command, job):
        monkeypatch.setattr(module, "load_pipeline", lambda *_: tiny_pipeline())
    flags = ["--maps", tmp_path / "maps", "--recipe", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "set"]
    command.main([str(flag) for flag in flags])
    flags = ["--dataset_name", tmp_path / "set", "--pretrained_vae", vae, "--train_batch_size", 2]
    flags += ["--feature", "malignancy", "--dropout", 0, "--augmentation_views", 1, "--max_train_steps", 3]
    train("train_classifier.py", *flags, "--output_dir", tmp_path / "classifier")
    assert (tmp_path / "classifier" / WEIGHTS_FILE).is_file()
