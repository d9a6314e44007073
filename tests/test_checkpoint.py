"""The checkpoint and the example maps that ship in the package."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.nodule_features import NODULE_FEATURES


def test_paths_are_those_of_the_package():
    assert Path(small_checkpoint()).name == "lung-ct-small"
    assert Path(example_map()).is_file()
    with pytest.raises(FileNotFoundError, match="'nothing', but the example maps are .*lidc-idri-0001"):
        example_map("nothing")


def test_is_small_safe_and_complete():
    folder = Path(small_checkpoint())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32e6
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    pipe = LSDMGuidedPipeline.from_pretrained(folder)
    assert set(pipe.classifiers) == set(NODULE_FEATURES)
    assert pipe.vae.config.scaling_factor != 0.18215
    assert pipe.scheduler.config.clip_sample is False
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            assert all(torch.isfinite(parameter).all() for parameter in component.parameters()), name


@torch.no_grad()
def test_tiling_changes_nothing_up_to_512_pixels():
    vae = AutoencoderKL.from_pretrained(small_checkpoint(), subfolder="vae").eval()
    assert vae.config.sample_size == 512
    pixels = torch.rand(1, 1, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae.encode(pixels).latent_dist.mode()
    decoded = vae.decode(latents).sample
    vae.enable_tiling()
    assert torch.equal(vae.encode(pixels).latent_dist.mode(), latents)
    assert torch.equal(vae.decode(latents).sample, decoded)
