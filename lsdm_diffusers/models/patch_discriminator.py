"""PatchGAN, the discriminator of the autoencoder and of the SPADE GAN."""

from torch import nn


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): images (B, in_channels, H, W) to logits of overlapping 70x70 patches, (B, 1, h, w). Edges of 32 at least."""

    def __init__(self, channels: int = 64, in_channels: int = 1):
        layers = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            width = channels * factor
            # instance norm: a batch norm would mix real and reconstructed images, and the processes' batches
            layers += [
                nn.Conv2d(width // 2, width, 4, stride=stride, padding=1),
                nn.InstanceNorm2d(width, affine=True),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(8 * channels, 1, 4, padding=1))
