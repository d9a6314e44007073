"""What the decoder sees of an error in the latents (Berrada et al. 2025, latent perceptual loss, arXiv:2411.04873).

The squared error of latents weighs every direction alike, but the decoder does not: some errors of a latent leave the
picture as it is, others tear a vessel. So at low noise, where the U-Net's prediction of the clean latents is sharp,
the features that the decoder makes of it are compared with those of the true latents.
"""

import torch
from diffusers import AutoencoderKL, DDPMScheduler

EPS = 1e-6


def predicted_clean_latents(
    model_output: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor, scheduler: DDPMScheduler
) -> torch.Tensor:
    """z_0 by one step from the predicted noise, v or sample.

    Args:
        model_output: (B, c, h, w).
        noisy: z_t, of the same shape.
        timesteps: (B,), training timesteps.
        scheduler: with the noise levels of training, variance preserving.

    Raises:
        ValueError: for another `prediction_type`.
    """
    alpha_bar = scheduler.alphas_cumprod.to(noisy.device)[timesteps][:, None, None, None]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "v_prediction":
        return alpha * noisy - sigma * model_output
    if prediction_type == "epsilon":
        return (noisy - sigma * model_output) / alpha
    if prediction_type == "sample":
        return model_output
    raise ValueError(f'`prediction_type` is {prediction_type!r}, but "epsilon", "sample" or "v_prediction" is needed.')


class DecoderFeatureLoss:
    """Mean squared error of the decoder's features, each channel over its variance, of two latents.

    The features are those behind the decoder's middle block and its first up block. The weights of the decoder do not
    change.

    Args:
        vae: the trained autoencoder.
    """

    def __init__(self, vae: AutoencoderKL):
        self.vae = vae

    def features(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """The features of scaled latents (B, c, h, w)."""
        decoder = self.vae.decoder
        hidden_states = latents / self.vae.config.scaling_factor
        if self.vae.post_quant_conv is not None:
            hidden_states = self.vae.post_quant_conv(hidden_states)
        middle = decoder.mid_block(decoder.conv_in(hidden_states))
        return [middle, decoder.up_blocks[0](middle)]

    def __call__(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss, a 0-dim tensor, of predicted latents and of those that are right; 0 where they are equal."""
        with torch.no_grad():
            right_features = self.features(target)
        losses = []
        for feature, right in zip(self.features(predicted), right_features, strict=True):
            variance = right.var(dim=(0, 2, 3), keepdim=True)
            losses.append(((feature - right) ** 2 / (variance + EPS)).mean())
        return torch.stack(losses).mean()
