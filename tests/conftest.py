"""Tiny real components, shared by the tests."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, SpadeUNet2DModel

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0205}


def tiny_unet(**changes):
    config = {
        "block_out_channels": (16, 32),
        "attention_levels": (False, True),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "spade_hidden_channels": 8,
    }
    torch.manual_seed(0)
    return SpadeUNet2DModel(**{**config, **changes}).eval()


def tiny_classifier(feature, objective):
    torch.manual_seed(1)
    return NoduleClassifier(feature, objective, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8).eval()


def tiny_pipeline(**changes):
    torch.manual_seed(2)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    ).eval()
    components = {
        "vae": vae,
        "unet": tiny_unet(),
        "scheduler": DDIMScheduler(clip_sample=False, **BETAS),
        "malignancy_classifier": tiny_classifier("malignancy", "classification"),
        "lobulation_classifier": tiny_classifier("lobulation", "regression"),
        "spiculation_classifier": tiny_classifier("spiculation", "regression"),
        "texture_classifier": tiny_classifier("texture", "regression"),
    }
    pipe = LSDMGuidedPipeline(**{**components, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture
def semantic_map():
    """96x128: lung with a nodule in the top left corner (malignant) and one inside (benign)."""
    labels = np.full((96, 128), 4, dtype=np.uint8)
    labels[:20] = 1
    labels[0:6, 0:6] = 7
    labels[50:60, 70:82] = 5
    return labels


def sample(pipe, semantic_map, features=None, seed=1, **arguments):
    """HU of a short run from a fixed seed."""
    arguments = {"num_inference_steps": 3, "output_type": "hu", "generator": torch.Generator().manual_seed(seed), **arguments}
    return pipe(semantic_map, features, **arguments).images
