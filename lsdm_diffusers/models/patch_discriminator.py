"""PatchGAN, the discriminator of the autoencoder and of the SPADE GAN."""

from torch import nn

LEAKY_SLOPE = 0.2  # of the leaky ReLUs, as in Isola et al. and Park et al.
# Edge of the smallest image, in pixels. The last instance norm sees 3x3 values of it. Of an image half as large, it
# would see one value, which it cannot normalise.
SMALLEST_EDGE = 32


class PatchDiscriminator(nn.Sequential):
    """PatchGAN: a convolutional network that judges overlapping 70x70 patches of an image (Isola et al. 2017).

    It takes images (B, in_channels, H, W), with edges of at least `SMALLEST_EDGE` pixels, to logits
    (B, 1, H // 8 - 2, W // 8 - 2) of its patches: the higher, the more real.

    Args:
        channels: width of the first layer; the next ones have 2, 4 and 8 times as many channels.
        in_channels: channels of the image.
    """

    def __init__(self, channels: int = 64, in_channels: int = 1):
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(LEAKY_SLOPE)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            width = channels * factor
            # Instance norm: a batch norm would mix real with generated images, and the batches of several processes.
            layers += [
                nn.Conv2d(width // 2, width, 4, stride=stride, padding=1),
                nn.InstanceNorm2d(width, affine=True),
                nn.LeakyReLU(LEAKY_SLOPE),
            ]
        super().__init__(*layers, nn.Conv2d(8 * channels, 1, 4, padding=1))
