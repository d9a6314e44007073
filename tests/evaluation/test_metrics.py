"""Metrics of pairs and of sets of slices against closed forms and other libraries."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

metrics = pytest.importorskip(
    "lsdm_diffusers.evaluation.metrics", reason="torchmetrics (the extra eval) is not installed"
)


def slices(count, edge, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, edge // 8, edge // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(edge, edge), mode="bicubic").mul(0.4).clamp(-1, 1)


def test_ssim_and_psnr_are_those_of_scikit_image():
    real, generated = slices(3, 96, 0), (slices(3, 96, 0) + 0.1 * slices(3, 96, 1)).clamp(-1, 1)
    figures = metrics.paired_metrics(real, generated)
    assert figures.keys() == {"ssim", "psnr"}  # too small for five scales
    for i in range(3):
        a, b = real[i, 0].numpy(), generated[i, 0].numpy()
        _, ssim_map = structural_similarity(
            a, b, data_range=2.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        # torchmetrics counts the border, too
        assert figures["ssim"][i].item() == pytest.approx(ssim_map.mean(), abs=1e-4)
        assert figures["psnr"][i].item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2.0), abs=1e-3)


def test_equal_slices_have_the_best_figures():
    real = slices(2, 192, 0)
    figures = metrics.paired_metrics(real, real)
    assert figures["ssim"].tolist() == pytest.approx([1, 1]) and figures["ms_ssim"].tolist() == pytest.approx([1, 1])
    worse = metrics.paired_metrics(real, real + 0.3 * slices(2, 192, 1))
    assert (worse["ms_ssim"] < 0.99).all() and (worse["ssim"] < worse["ms_ssim"]).all()


def test_frechet_distance_of_two_gaussians():
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of sets with exactly these means and covariances."""
    generator = np.random.default_rng(0)

    def gaussian(mean, covariance, count=64):
        white = generator.standard_normal((count, len(mean)))
        white -= white.mean(axis=0)
        white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
        return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)

    means = np.array([0.0, 1.0, -2.0]), np.array([0.5, 0.0, -1.0])
    factors = generator.standard_normal((2, 3, 3))
    covariances = [factor @ factor.T + np.eye(3) for factor in factors]
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    real, generated = (gaussian(mean, covariance) for mean, covariance in zip(means, covariances, strict=True))
    assert metrics.frechet_distance(real, generated) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(real, real) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_estimate():
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(20, 5, generator=generator), torch.randn(20, 5, generator=generator) + 1

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(real)
    within = sum((kernel(x, x).sum() - kernel(x, x).trace()) / (n * (n - 1)) for x in (real, generated))
    expected = within - 2 * kernel(real, generated).mean()
    assert metrics.kernel_distance(real, generated) == pytest.approx(expected.item(), rel=1e-4)
    same = [
        metrics.kernel_distance(torch.randn(50, 5, generator=generator), torch.randn(50, 5, generator=generator))
        for _ in range(40)
    ]
    # unbiased: around 0 for two sets of one distribution
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))


def test_features_see_structure_and_are_cached(tmp_path):
    extractor = metrics.feature_extractor("efficientnet")
    images, noise = slices(6, 64, 0), torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = metrics.image_features(images, extractor, tmp_path)
    assert features.shape == (6, 1280)
    calls = []
    extractor.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(metrics.image_features(images, extractor, tmp_path), features, atol=0, rtol=0)
    assert not calls
    others = metrics.image_features(slices(6, 64, 1), extractor, tmp_path)
    assert calls and len(list(tmp_path.glob("*.npy"))) == 2
    assert metrics.frechet_distance(features, others) < metrics.frechet_distance(
        features, metrics.image_features(noise, extractor)
    )


def test_an_extractor_that_is_not_available_says_so(monkeypatch):
    with pytest.raises(ValueError, match="`name` is 'vgg', but one of inception, dinov2, efficientnet is needed"):
        metrics.feature_extractor("vgg")
    monkeypatch.setattr(metrics, "DINOV2", "no/such-model")
    monkeypatch.setattr(metrics.Dinov2Features.__init__, "__defaults__", ("./no-such-folder",))
    with pytest.raises(RuntimeError, match="the feature extractor 'dinov2' is not available"):
        metrics.feature_extractor("dinov2")


def test_dinov2_features_come_from_transformers(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    extractor = metrics.Dinov2Features(str(tmp_path))
    features = metrics.image_features(slices(2, 64, 0), extractor)
    assert features.shape == (2, 16) and not torch.equal(features[0], features[1])


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"`generated` has the shape \(1, 1, 8, 9\)"):
        metrics.paired_metrics(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 9))
    with pytest.raises(ValueError, match=r"`images` has the shape \(8, 8\)"):
        metrics.image_features(torch.zeros(8, 8), torch.nn.Identity())
    with pytest.raises(ValueError, match="N at least 2"):
        metrics.frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
