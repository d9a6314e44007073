"""The nodule classifier: shapes, log p of each sample, gradients, saving and errors."""

import pytest
import torch

from lsdm_diffusers import NoduleClassifier
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.models.nodule_classifier import NoduleClassifierOutput
from lsdm_diffusers.nodule_features import NODULE_FEATURES

from ..conftest import tiny_classifier

KINDS = [("malignancy", "classification"), ("texture", "regression")]
TARGETS = {"classification": torch.tensor([0, 1, 1]), "regression": torch.tensor([1.0, 3.5, 5.0])}


@pytest.fixture(params=KINDS, ids=[objective for _, objective in KINDS])
def classifier(request):
    return tiny_classifier(*request.param)


@pytest.fixture
def images():
    return torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1.2, 1.2)


def test_outputs_have_one_row_per_sample(classifier, images):
    shape = (3, 2) if classifier.config.objective == "classification" else (3,)
    same_time, several_times = (classifier(images, t).prediction for t in (10, torch.tensor([10, 500, 999])))
    assert same_time.shape == several_times.shape == shape
    assert torch.allclose(same_time[0], several_times[0], atol=1e-5)
    assert not torch.allclose(same_time[1:], several_times[1:], atol=1e-5)  # the noise level matters


def test_regression_starts_at_the_middle_of_the_scale(images):
    classifier = tiny_classifier("texture", "regression")
    torch.nn.init.zeros_(classifier.head.weight)
    torch.nn.init.zeros_(classifier.head.bias)
    assert classifier(images, 0).prediction.tolist() == [3, 3, 3]
    torch.nn.init.ones_(classifier.head.bias)
    assert classifier(images, 0).prediction.tolist() == [5, 5, 5]


def test_log_prob_is_minus_the_loss_and_a_batch_equals_single_runs(classifier, images):
    target, timesteps = TARGETS[classifier.config.objective], torch.tensor([10, 500, 999])
    batch = classifier.log_prob(images, timesteps, target)
    single = torch.cat([classifier.log_prob(images[i : i + 1], int(timesteps[i]), target[i].item()) for i in range(3)])
    assert batch.shape == (3,) and torch.allclose(batch, single, atol=1e-4)
    output = classifier(images, timesteps).prediction
    if classifier.config.objective == "classification":
        expected = output.log_softmax(dim=1)[torch.arange(3), target]
        other = classifier.log_prob(images, timesteps, 1 - target)
        assert torch.allclose(batch.exp() + other.exp(), torch.ones(3), atol=1e-5)
    else:
        expected = -((output - target) ** 2)
    assert torch.allclose(batch, expected, atol=1e-5)


def test_gradient_reaches_each_image_and_no_other(classifier, images):
    images.requires_grad_(True)
    log_prob = classifier.requires_grad_(False).log_prob(images, 100, TARGETS[classifier.config.objective])
    (first,) = torch.autograd.grad(log_prob[0], images, retain_graph=True)
    assert first[0].abs().max() > 0 and first[1:].abs().max() == 0
    (batch,) = torch.autograd.grad(log_prob.sum(), images)
    assert torch.isfinite(batch).all() and (batch.flatten(1).abs().amax(dim=1) > 0).all()
    assert torch.allclose(batch[0], first[0], atol=1e-6)


def test_saved_and_loaded_is_the_same(classifier, images, tmp_path):
    classifier.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = NoduleClassifier.from_pretrained(tmp_path)
    assert (
        loaded.config.feature == classifier.config.feature and loaded.config.objective == classifier.config.objective
    )
    assert torch.equal(loaded(images, 100).prediction, classifier(images, 100).prediction)


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(classifier, images):
    def gradients():
        calls = []
        resnets = [module for module in classifier.modules() if type(module).__name__ == "ResnetBlock2D"]
        hooks = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in resnets]
        classifier.zero_grad()
        classifier.log_prob(images, 100, TARGETS[classifier.config.objective]).sum().backward()
        for hook in hooks:
            hook.remove()
        return [parameter.grad.clone() for parameter in classifier.parameters()], len(calls)

    classifier.train()
    images.requires_grad_(True)
    plain, plain_calls = gradients()
    classifier.enable_gradient_checkpointing()
    checkpointed, checkpointed_calls = gradients()
    assert checkpointed_calls > plain_calls
    for first, second in zip(plain, checkpointed, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"feature": "calcification"},
            "`feature` is 'calcification', but one of malignancy, lobulation, spiculation, texture",
        ),
        ({"objective": "ranking"}, "`objective` is 'ranking', but one of classification, regression"),
        (
            {"block_out_channels": (16, 20)},
            r"`block_out_channels` is \(16, 20\), but multiples of `norm_num_groups` = 12",
        ),
        ({"block_out_channels": ()}, r"`block_out_channels` is \(\)"),
        ({"attention_head_dim": 36}, "`attention_head_dim` is 36, but a divisor of the last width 96"),
        ({"layers_per_block": 0}, "`layers_per_block` is 0, but at least 1"),
        ({"dropout": 1.0}, "`dropout` is 1.0, but 0 <= dropout < 1"),
    ],
)
def test_invalid_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NoduleClassifier(**changes)


@pytest.mark.parametrize(
    "objective, target, message",
    [
        ("classification", 2, "contains 2, but the class 0 or 1"),
        ("classification", 0.5, "contains 0.5, but the class 0 or 1"),
        ("classification", torch.tensor([0, 1, -1]), "contains -1, but the class 0 or 1"),
        ("regression", 0, "contains 0, but a rating 1..5"),
        ("regression", torch.tensor([1.0, 5.0, 5.5]), "contains 5.5, but a rating 1..5"),
        ("regression", float("nan"), "contains nan, but a rating 1..5"),
    ],
)
def test_target_outside_its_range_is_refused(objective, target, message, images):
    feature = "malignancy" if objective == "classification" else "lobulation"
    with pytest.raises(ValueError, match=message):
        tiny_classifier(feature, objective).log_prob(images, 10, target)


def test_the_check_of_targets_can_be_left_out(classifier, images):
    target = TARGETS[classifier.config.objective]
    checked, unchecked = (classifier.log_prob(images, 10, target, check_target=check) for check in (True, False))
    assert torch.equal(checked, unchecked)
    with pytest.raises(ValueError, match="`target` contains"):
        classifier.log_prob(images, 10, target + 5)
    if classifier.config.objective == "regression":
        assert classifier.log_prob(images, 10, target + 5, check_target=False).shape == (3,)


def test_default_is_small_and_takes_each_feature():
    for feature in NODULE_FEATURES:
        assert NoduleClassifier(feature, "regression").config.feature == feature
    assert sum(parameter.numel() for parameter in NoduleClassifier().parameters()) <= 1.1e6


def test_hu_thresholds_tell_ground_glass_from_solid(tmp_path):
    """The steps are -1 below, +1 above and 0 at their HU; they are saved with the configuration."""
    classifier = NoduleClassifier(feature="texture", objective="regression", hu_thresholds=(-500, 0))
    seen = []
    classifier.conv_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    hu = torch.tensor([-500.0, -900.0, 0.0, 700.0])
    image = scaled_hu(hu)[:, None, None, None].expand(-1, 1, 64, 64)
    classifier.eval()(image, 10)
    steps = seen[0][:, 1:, 0, 0]
    torch.testing.assert_close(
        steps, torch.tensor([[0, -1], [-1, -1], [1, 0], [1, 1]], dtype=torch.float32), atol=2e-3, rtol=0
    )
    classifier.save_pretrained(tmp_path)
    loaded = NoduleClassifier.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(image, 10).prediction, classifier(image, 10).prediction)


@pytest.mark.parametrize(("feature", "objective"), [("malignancy", "classification"), ("texture", "regression")])
def test_output_is_a_dict_or_a_tuple(feature, objective):
    classifier, images = tiny_classifier(feature, objective), torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        output = classifier(images, 10)
        (prediction,) = classifier(images, 10, return_dict=False)
    assert isinstance(output, NoduleClassifierOutput) and output["prediction"] is output.prediction is output[0]
    assert torch.equal(output.prediction, prediction)
