import functools
import gc
import inspect
import json
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
from lsdm_diffusers.evaluation.control.sham import ShamGradient

from .conftest import BETAS, sample, tiny_pipeline, tiny_unet

ALL = {"malignancy": "malignant", "lobulation": 4, "spiculation": 5, "texture": 1}


def test_signature_is_the_published_one():
    parameters = inspect.signature(LSDMGuidedPipeline.__call__).parameters
    assert list(parameters)[1:] == [
        "semantic_map",
        "nodule_features",
        "num_inference_steps",
        "guidance_scale",
        "guidance_order",
        "eta",
        "num_images_per_map",
        "generator",
        "latents",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "timesteps",
        "sigmas",
        "guidance_method",
        "grain",
        "volume",
        "slice_spacing_mm",
    ]
    assert parameters["num_inference_steps"].default == 25 and parameters["guidance_order"].default == "sequential"


def test_output_types_agree(pipe, semantic_map):
    hu = sample(pipe, semantic_map)
    assert hu.shape == (1, 96, 128) and hu.dtype == np.int16 and hu.min() >= -1024 and hu.max() <= 800
    unit = sample(pipe, semantic_map, output_type="np")
    assert unit.shape == (1, 96, 128, 1)
    np.testing.assert_allclose(unit[..., 0] * 1824 - 1024, hu, atol=0.51)
    tensor = sample(pipe, semantic_map, output_type="pt")
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), unit)
    image = sample(pipe, semantic_map, output_type="pil")[0]
    assert image.mode == "L" and image.size == (128, 96)
    np.testing.assert_allclose(np.asarray(image) / 255, unit[0, ..., 0], atol=0.003)
    assert sample(pipe, semantic_map, output_type="latent").shape == (1, 3, 24, 32)
    assert isinstance(pipe(semantic_map, num_inference_steps=1, return_dict=False), tuple)


@pytest.mark.parametrize("kind", ["pil", "palette", "tensor", "png", "batch"])
def test_every_kind_of_map_gives_the_same_image(pipe, semantic_map, tmp_path, kind):
    PIL.Image.fromarray(semantic_map).save(tmp_path / "map.png")
    palette = PIL.Image.fromarray(semantic_map).convert("P")
    palette.putpalette(list(range(24)))
    given = {
        "pil": PIL.Image.fromarray(semantic_map),
        "palette": palette,
        "tensor": torch.from_numpy(semantic_map).long(),
        "png": tmp_path / "map.png",
        "batch": semantic_map[None],
    }[kind]
    np.testing.assert_array_equal(sample(pipe, given), sample(pipe, semantic_map))


def test_guidance_scale_zero_and_no_features_are_no_guidance(pipe, semantic_map):
    plain = sample(pipe, semantic_map)
    np.testing.assert_array_equal(sample(pipe, semantic_map, ALL, guidance_scale=0), plain)
    np.testing.assert_array_equal(sample(pipe, semantic_map, [{}]), plain)
    np.testing.assert_array_equal(sample(pipe, semantic_map, {}), plain)
    lung = np.full_like(semantic_map, 4)
    with pytest.warns(UserWarning, match="no nodule"):
        np.testing.assert_array_equal(sample(pipe, lung, ALL), sample(pipe, lung))


@pytest.mark.parametrize("order", ["sequential", "joint"])
def test_guidance_acts_in_the_nodules_alone(pipe, semantic_map, order):
    """One step from the same noise: the latents differ inside the dilated nodules only."""
    plain = sample(pipe, semantic_map, output_type="latent", num_inference_steps=1)
    guided = sample(
        pipe, semantic_map, ALL, output_type="latent", num_inference_steps=1, guidance_scale=50.0, guidance_order=order
    )
    changed = (guided - plain).abs().amax(dim=(0, 1)) > 0
    allowed = torch.zeros_like(changed)
    allowed[0:3, 0:3] = True  # 6x6 pixels in the corner: latents 0..1, dilated by one
    allowed[11:16, 16:22] = True  # rows 50..59, columns 70..81: latents 12..14 and 17..20, dilated by one
    assert changed.any() and not (changed & ~allowed).any()
    assert changed[0:3, 0:3].any() and changed[11:16, 16:22].any()


def test_orders_agree_for_one_kind_and_differ_for_both(pipe, semantic_map):
    both = {"malignancy": "malignant", "texture": 5}
    runs = {
        (order, name): sample(
            pipe, semantic_map, features, output_type="latent", guidance_scale=100.0, guidance_order=order
        )
        for order in ("sequential", "joint")
        for name, features in (("both", both), ("texture", {"texture": 5}), ("malignancy", {"malignancy": 5}))
    }
    for name in ("texture", "malignancy"):
        assert torch.equal(runs["sequential", name], runs["joint", name])
    assert not torch.equal(runs["sequential", "both"], runs["joint", "both"])


def test_features_for_each_nodule(pipe, semantic_map):
    """Raster order: the corner nodule is first; guiding it alone leaves the other where it was."""
    plain = sample(pipe, semantic_map, output_type="latent", num_inference_steps=1)
    first = sample(
        pipe, semantic_map, [[{"texture": 5}, {}]], output_type="latent", num_inference_steps=1, guidance_scale=50.0
    )
    changed = (first - plain).abs().amax(dim=(0, 1)) > 0
    assert changed[0:3, 0:3].any() and not changed[11:16, 16:22].any()
    every = sample(pipe, semantic_map, [{"texture": 5}], guidance_scale=50.0)
    np.testing.assert_array_equal(every, sample(pipe, semantic_map, {"texture": 5}, guidance_scale=50.0))


def test_scale_for_each_feature(pipe, semantic_map):
    both = {"lobulation": 5, "texture": 5}
    off = sample(pipe, semantic_map, both, guidance_scale={"lobulation": 0, "texture": 20.0})
    np.testing.assert_array_equal(off, sample(pipe, semantic_map, {"texture": 5}, guidance_scale=20.0))


def test_batch_equals_single(pipe, semantic_map):
    other = semantic_map[::-1].copy()
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3, 4)]
    features = [[{"texture": 5}, {"malignancy": "benign"}], {"spiculation": 4}]
    batch = sample(
        pipe,
        [semantic_map, other],
        features,
        num_images_per_map=2,
        generator=seeds,
        guidance_scale=10.0,
        output_type="latent",
    )
    for index, seed in enumerate((1, 2, 3, 4)):
        single = sample(
            pipe,
            [semantic_map, other][index // 2],
            [features[index // 2]],
            seed=seed,
            guidance_scale=10.0,
            output_type="latent",
        )
        torch.testing.assert_close(batch[index : index + 1], single, atol=1e-4, rtol=1e-4)


SCHEDULERS = ["DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"]
MORE_SCHEDULERS = [
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


@pytest.mark.parametrize(
    "name", [*SCHEDULERS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_SCHEDULERS)]
)
def test_every_scheduler_runs_guided(pipe, semantic_map, name):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    plain, guided = (
        sample(pipe, semantic_map, features, num_inference_steps=4, guidance_scale=20.0) for features in (None, ALL)
    )
    assert not np.array_equal(plain, guided)


def test_flow_matching_runs(semantic_map):
    pipe = tiny_pipeline(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    assert np.isfinite(sample(pipe, semantic_map, ALL, output_type="np")).all()


def test_refused_schedulers(pipe, semantic_map):
    pipe.scheduler = diffusers.KDPM2DiscreteScheduler(**BETAS)
    with pytest.raises(ValueError, match="KDPM2DiscreteScheduler"):
        sample(pipe, semantic_map, ALL)
    pipe.scheduler = diffusers.EDMEulerScheduler()
    for features in (None, ALL):
        with pytest.raises(ValueError, match="EDMEulerScheduler, but its model's output is preconditioned"):
            sample(pipe, semantic_map, features)
    pipe.scheduler = diffusers.IPNDMScheduler()
    for features in (None, ALL):
        with pytest.raises(ValueError, match="IPNDMScheduler, but one with a `prediction_type` is needed"):
            sample(pipe, semantic_map, features)
    pipe.scheduler = DDIMScheduler(clip_sample=False, thresholding=True, **BETAS)
    with pytest.raises(ValueError, match="thresholding=True, but that clips latents"):
        sample(pipe, semantic_map)
    pipe.scheduler = DDIMScheduler(clip_sample=True, **BETAS)
    with pytest.raises(ValueError, match="clip_sample=True, but that clips latents"):
        sample(pipe, semantic_map)


def test_calls_without_gradients_are_refused(pipe, semantic_map):
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="inference_mode"):
            sample(pipe, semantic_map, ALL)
        assert sample(pipe, semantic_map).shape == (1, 96, 128)
    pipe.malignancy_classifier.to("meta")
    with pytest.raises(RuntimeError, match="sequential offload"):
        sample(pipe, semantic_map, ALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodule_features": {"margin": 3}}, "'margin'"),
        ({"nodule_features": {"texture": 6}}, "texture = 6"),
        ({"nodule_features": {"malignancy": "bad"}}, "'bad'"),
        (
            {"nodule_features": [{}, {}]},
            r"2 entries, but one entry, for the one map, is needed; .* \[\[{...}, {...}\]\]",
        ),
        ({"timesteps": [999, 500], "sigmas": [1.0, 0.5]}, "`timesteps` and `sigmas` are both given"),
        ({"sigmas": [1.0, 0.5]}, "`sigmas` is given, but `scheduler` .DDIMScheduler. makes its own"),
        ({"generator": 3}, "`generator` is 3"),
        ({"generator": [3]}, r"`generator` is \[3\]"),
        ({"nodule_features": [[{"texture": 3}]]}, "1 entries, but the map has 2 nodules"),
        ({"guidance_scale": -1}, "-1"),
        ({"guidance_scale": {"margin": 1}}, "'margin'"),
        ({"guidance_order": "random"}, "'random'"),
        ({"num_inference_steps": 0}, "0"),
        ({"num_images_per_map": 0}, "0"),
        ({"output_type": "dicom"}, "'dicom'"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"\(1, 3, 8, 8\)"),
        ({"generator": [torch.Generator()] * 3}, "list of 3"),
        ({"semantic_map": np.full((96, 128), 8)}, "value 8"),
        ({"semantic_map": np.zeros((96, 130), np.uint8)}, "96x130"),
        ({"semantic_map": [np.zeros((96, 128), np.uint8), np.zeros((64, 64), np.uint8)]}, "sizes"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "'noise'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_named(pipe, semantic_map, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"semantic_map": semantic_map, "num_inference_steps": 1, **arguments})


def test_missing_classifier_is_named(semantic_map):
    pipe = tiny_pipeline(texture_classifier=None)
    assert sample(pipe, semantic_map, {"malignancy": 4}).shape == (1, 96, 128)
    with pytest.raises(ValueError, match="texture_classifier"):
        sample(pipe, semantic_map, {"texture": 3})


def test_callback_sees_and_changes_latents_and_scale(pipe, semantic_map):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].shape))
        pipeline._guidance_scale = 0.0
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = sample(pipe, semantic_map, ALL, callback_on_step_end=callback, output_type="latent")
    assert [step for step, _, _ in seen] == [0, 1, 2] and pipe.num_timesteps == 3 and pipe.guidance_scale == 0.0
    assert images.abs().max() == 0


class HostReads(TorchDispatchMode):
    """Raise an error where a tensor is read back to the host, or has a shape that depends on one; while armed."""

    READS = {"_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "_unique2"}
    INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

    def __init__(self):
        super().__init__()
        self.armed = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.armed:
            name = function.overloadpacket.__name__
            indices = args[1] if name in self.INDEXING else []
            by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
            assert name not in self.READS and not by_mask, f"a step reads a tensor back to the host: {function}"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def host_reads(monkeypatch):
    """The mode, with the reads that pass by its dispatch: `tolist`, `numpy`, `cpu`."""
    reads = HostReads()

    def guarded(read):
        def method(tensor, *args, **kwargs):
            assert not reads.armed, f"a step reads a tensor back to the host: {read.__name__}"
            return read(tensor, *args, **kwargs)

        return method

    for name in ("tolist", "numpy", "cpu", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, guarded(getattr(torch.Tensor, name)))
    return reads


@pytest.mark.parametrize("order", ["sequential", "joint"])
@pytest.mark.parametrize(
    "scheduler", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"]
)
def test_no_step_reads_a_tensor_back_to_the_host(semantic_map, monkeypatch, host_reads, scheduler, order):
    """From the first evaluation of the U-Net to the last step. What the scheduler itself reads is not ours."""
    scheduler_class = getattr(diffusers, scheduler)
    config = {} if scheduler.startswith("Flow") else {**BETAS, "prediction_type": "v_prediction"}
    pipe = tiny_pipeline(scheduler=scheduler_class(**config))
    steps = 3

    def disarmed(method):
        def run(*args, **kwargs):
            armed, host_reads.armed = host_reads.armed, False
            try:
                return method(*args, **kwargs)
            finally:
                host_reads.armed = armed

        return run

    for name in ("scale_model_input", "step"):
        if hasattr(scheduler_class, name):
            method = getattr(scheduler_class, name)
            monkeypatch.setattr(scheduler_class, name, functools.wraps(method)(disarmed(method)))

    def arm(module, args, kwargs):
        host_reads.armed = True

    def disarm_at_the_end(pipe, step, timestep, tensors):
        host_reads.armed = step < steps - 1
        return {}

    pipe.unet.register_forward_pre_hook(arm, with_kwargs=True)
    pipe.gradient_hook = ShamGradient()
    features = [[{"malignancy": "malignant", "texture": 4}, {"lobulation": 2, "malignancy": 1}]]
    with host_reads:
        images = sample(
            pipe,
            semantic_map,
            features,
            num_inference_steps=steps,
            num_images_per_map=2,
            guidance_order=order,
            callback_on_step_end=disarm_at_the_end,
            output_type="latent",
        )
    assert images.isfinite().all()


@pytest.mark.parametrize(
    "read",
    [lambda x: x.item(), bool, lambda x: x.tolist(), lambda x: x.cpu(), torch.nonzero, lambda x: x[x > 0]],
    ids=["item", "bool", "tolist", "cpu", "nonzero", "mask"],
)
def test_reads_are_noticed(host_reads, read):
    with host_reads:
        host_reads.armed = True
        with pytest.raises(AssertionError, match="reads a tensor back"):
            read(torch.ones(1))


def test_a_seed_names_an_image_whatever_ran_before(pipe, semantic_map):
    """The spread of Euler's starting noise depends on the number of steps of the run, not on that of the last one."""
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")
    first = sample(pipe, semantic_map, num_inference_steps=3)
    sample(pipe, semantic_map, num_inference_steps=20)
    np.testing.assert_array_equal(sample(pipe, semantic_map, num_inference_steps=3), first)


def test_given_latents_are_used(pipe, semantic_map):
    noise = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(
        sample(pipe, semantic_map, latents=noise, generator=None), sample(pipe, semantic_map)
    )


def test_concatenation_baseline_and_bfloat16(semantic_map):
    assert sample(tiny_pipeline(unet=tiny_unet(spade_blocks="none")), semantic_map, ALL).shape == (1, 96, 128)
    pipe = tiny_pipeline()
    full = sample(pipe, semantic_map, ALL).astype(int)
    half = sample(pipe.to(torch.bfloat16), semantic_map, ALL).astype(int)
    assert np.abs(full - half).mean() < 40  # HU; bfloat16 keeps 8 bits


def test_save_and_load(tmp_path, semantic_map):
    pipe = tiny_pipeline(lobulation_classifier=None)
    expected = sample(pipe, semantic_map, {"texture": 5})
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["lsdm_diffusers.models.unet_spade", "SpadeUNet2DModel"]
    assert index["malignancy_classifier"] == ["lsdm_diffusers.models.nodule_classifier", "NoduleClassifier"]
    assert index["lobulation_classifier"] == [None, None]
    loaded = LSDMGuidedPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for name in ("vae", "unet", "malignancy_classifier", "texture_classifier"):
        saved, read = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        assert saved.keys() == read.keys() and all(torch.equal(saved[key], read[key]) for key in saved), name
    # Weights mapped from a file lie at any address, and CPU kernels round differently at unaligned ones. Copies give
    # the very same image.
    for component in loaded.components.values():
        for parameter in component.parameters() if isinstance(component, torch.nn.Module) else ():
            parameter.data = parameter.data.clone()
    np.testing.assert_array_equal(sample(loaded, semantic_map, {"texture": 5}), expected)
    assert loaded.lobulation_classifier is None
    assert LSDMGuidedPipeline.from_pretrained(tmp_path, texture_classifier=None).texture_classifier is None


def test_custom_pipeline_route(tmp_path, semantic_map, monkeypatch):
    """The README's `DiffusionPipeline.from_pretrained(path, custom_pipeline=...)`."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    tiny_pipeline().save_pretrained(tmp_path / "checkpoint")
    shim = tmp_path / "lsdm_shim.py"
    shim.write_text("from lsdm_diffusers import LSDMGuidedPipeline\n")
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path / "checkpoint", custom_pipeline=str(shim), trust_remote_code=True
    )
    assert isinstance(pipe, LSDMGuidedPipeline)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_changes_nothing(semantic_map, offload):
    expected = sample(tiny_pipeline(), semantic_map, ALL)
    pipe = tiny_pipeline()
    if offload == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_array_equal(sample(pipe, semantic_map, ALL), expected)


def test_grain_is_seeded_drawn_for_each_slice_and_added_to_the_finished_slice(pipe, semantic_map, tmp_path):
    with pytest.raises(ValueError, match="`grain` is 1, but this checkpoint has no `ct_noise`"):
        sample(pipe, semantic_map, grain=1)
    noise = {"power": [1.0] * 32, "deviation_hu": [0.0, 10.0, 10.0, 10.0, 20.0], "levels": [0.5] * 10 + [2.0]}
    LSDMGuidedPipeline(**pipe.components, ct_noise=noise).save_pretrained(tmp_path)
    pipe = LSDMGuidedPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`grain` is 1, but latents have none"):
        sample(pipe, semantic_map, grain=1, output_type="latent")

    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    maps = [semantic_map, semantic_map]
    both = pipe(maps, ALL, 2, generator=seeds, output_type="hu", grain=1).images.astype(int)
    for image, seed in zip(both, (3, 4), strict=True):
        own = {"generator": torch.Generator().manual_seed(seed), "output_type": "hu"}
        alone = pipe(semantic_map, ALL, 2, **own, grain=1).images[0]
        np.testing.assert_allclose(image, alone, atol=1)
        plain = pipe(semantic_map, ALL, 2, **{**own, "generator": torch.Generator().manual_seed(seed)}).images[0]
        added = alone.astype(int) - plain
        lung, body = (added[semantic_map == label].std() for label in (4, 1))
        assert 4 < body < 25 and lung / body == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("groups", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}])
def test_components_offloaded_to_one_folder_keep_their_own_weights(pipe, semantic_map, tmp_path, groups):
    expected = sample(pipe, semantic_map, ALL)
    offload = {"onload_device": torch.device("cpu"), "offload_to_disk_path": str(tmp_path / "disk"), **groups}
    pipe.enable_group_offload(**offload, exclude_modules="vae")
    np.testing.assert_allclose(sample(pipe, semantic_map, ALL).astype(int), expected, atol=1)
    folders = {folder.name for folder in (tmp_path / "disk").iterdir()}
    assert folders == {"unet"} | {f"{name}_classifier" for name in pipe.classifiers}
    with pytest.raises(ValueError, match="`offload_to_disk_path` is .*disk, but .*unet already has files"):
        pipe.enable_group_offload(**offload)


def test_modulation_is_freed_after_the_call(pipe, semantic_map, monkeypatch):
    kept = []
    compute = type(pipe.unet).compute_modulation

    def spy(self, *args):
        modulation = compute(self, *args)
        kept.extend(weakref.ref(tensor) for block in modulation for pair in block for tensor in pair)
        return modulation

    monkeypatch.setattr(type(pipe.unet), "compute_modulation", spy)
    sample(pipe, semantic_map)
    gc.collect()
    assert kept and all(reference() is None for reference in kept)


def test_modulation_is_computed_once_per_call(pipe, semantic_map, monkeypatch):
    calls = []
    compute = type(pipe.unet).compute_modulation
    monkeypatch.setattr(
        type(pipe.unet), "compute_modulation", lambda self, *args: (calls.append(1), compute(self, *args))[1]
    )
    sample(pipe, semantic_map, num_inference_steps=5)
    assert len(calls) == 1


def test_schedulers_swap_from_the_saved_config(pipe, semantic_map):
    """DDIM, PNDM ... from the config of a DPM++ pipeline keep clip_sample=False."""
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.clip_sample is False
    sample(pipe, semantic_map)


@pytest.mark.parametrize("features", [None, ALL], ids=["unguided", "guided"])
@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), "takes flow_prediction, .* predicts v_prediction"),
        (diffusers.FlowMatchHeunDiscreteScheduler(), "takes flow_prediction"),
        (DDIMScheduler(clip_sample=False, **BETAS), "takes epsilon, .* predicts v_prediction"),
        (diffusers.CMStochasticIterativeScheduler(), "preconditioned"),
        (diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"), "preconditioned"),
        (diffusers.DPMSolverMultistepInverseScheduler(prediction_type="v_prediction"), "from a picture to noise"),
        (diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", clip_sample=False), "shifts the noise"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, diffusers.SchedulerMixin) else "",
)
def test_a_scheduler_for_another_model_is_refused(semantic_map, scheduler, message, features):
    """Each of them runs, and gives noise or lungs of the wrong density."""
    pipe = tiny_pipeline(scheduler=DPMSolverMultistepScheduler(prediction_type="v_prediction", **BETAS))
    for given in (scheduler, type(scheduler).from_config(pipe.scheduler.config)):
        pipe.scheduler = given
        if getattr(given.config, "prediction_type", None) == "v_prediction" and "takes epsilon" in message:
            continue  # `from_config` makes it fit
        with pytest.raises(ValueError, match=f"{type(scheduler).__name__}.*{message}"):
            sample(pipe, semantic_map, features)


def test_flow_models_take_flow_schedulers_and_multistep_ones_told_so(semantic_map):
    pipe = tiny_pipeline(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config)
    assert sample(pipe, semantic_map).shape == (1, 96, 128)
    config = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    with pytest.raises(ValueError, match="takes epsilon, .* predicts flow_prediction"):
        sample(pipe, semantic_map)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        config, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    assert sample(pipe, semantic_map, ALL).shape == (1, 96, 128)


def test_a_scheduler_given_at_loading_is_compared_with_the_saved_one(tmp_path, semantic_map):
    tiny_pipeline().save_pretrained(tmp_path)
    pipe = LSDMGuidedPipeline.from_pretrained(tmp_path, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="takes flow_prediction, .* predicts epsilon"):
        sample(pipe, semantic_map)


@pytest.mark.parametrize("error", [NotImplementedError("no step of this kind"), ImportError("needs\ntorchsde")])
def test_a_scheduler_that_fails_is_refused_in_one_line_before_any_work(semantic_map, error):
    class Failing(DDIMScheduler):
        def step(self, *args, **kwargs):
            raise error

    pipe = tiny_pipeline(scheduler=Failing(clip_sample=False, **BETAS))
    pipe.unet.forward = None  # any work would fail on it
    message = f"^`scheduler` is Failing, but it fails with {type(error).__name__} in a first trial step: [^\n]*$"
    with pytest.raises(ValueError, match=message):
        sample(pipe, semantic_map)
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler(prediction_type="sample", **BETAS)
    pipe._trained_prediction = "sample"
    with pytest.raises(ValueError, match="NotImplementedError in a first trial step: prediction_type not implemented"):
        sample(pipe, semantic_map)


def test_the_trial_step_draws_nothing_from_the_global_generator(semantic_map):
    """An unseeded call after `torch.manual_seed` gives what it gave before the trial was there."""
    pipe = tiny_pipeline(scheduler=diffusers.DDPMScheduler(clip_sample=False, **BETAS))
    torch.manual_seed(3)
    first = sample(pipe, semantic_map, generator=None)
    generator = torch.Generator().manual_seed(3)
    np.testing.assert_array_equal(first, sample(pipe, semantic_map, generator=generator))


def far_from_its_centroid(shape):
    """A map 192x192 with one malignant nodule whose centroid lies outside it."""
    y, x = np.mgrid[:192, :192] - 96
    radius = np.hypot(y, x)
    nodule = {
        "ring": (radius >= 56) & (radius < 60),
        "crescent": (radius >= 56) & (radius < 60) & (x < 20),
        "L": (abs(x + 60) < 2) & (abs(y) < 62) | (abs(y - 60) < 2) & (abs(x) < 62),
    }[shape]
    return np.where(nodule, 7, 4).astype(np.uint8)


@pytest.mark.parametrize("shape", ["ring", "crescent", "L"])
def test_a_nodule_around_its_centroid_is_guided(pipe, shape):
    labels = far_from_its_centroid(shape)
    plain, guided = (
        sample(pipe, labels, features, output_type="latent", num_inference_steps=1, guidance_scale=scale)
        for features, scale in ((None, 1.0), (ALL, 64.0))
    )
    changed = (guided - plain).abs().amax(dim=(0, 1)) > 0
    assert changed.sum() >= 16
    near = torch.nn.functional.max_pool2d(torch.from_numpy(labels == 7)[None].float(), 4)
    near = torch.nn.functional.max_pool2d(near, 3, stride=1, padding=1)[0] > 0
    assert not (changed & ~near).any()


def test_guidance_that_does_nothing_warns_where_the_call_stands(pipe, semantic_map, recwarn):
    lung = np.full_like(semantic_map, 4)
    sample(pipe, semantic_map)
    sample(pipe, semantic_map, guidance_scale=0)
    sample(pipe, [semantic_map, lung], [ALL, None])
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
    cases = [
        ({"guidance_scale": 4.0}, semantic_map, "`guidance_scale` is 4.0, but there are no `nodule_features`"),
        ({"nodule_features": {"texture": 3}}, lung, "`nodule_features` is given, but the map has no nodule"),
        ({"nodule_features": {"texture": 3}}, [semantic_map, lung], r"maps 1 \(counted from 0\) have no nodule"),
    ]
    for arguments, labels, message in cases:
        with pytest.warns(UserWarning, match=message) as caught:
            pipe(labels, num_inference_steps=1, **arguments)
        assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["sequential", "joint"])
def test_the_shipped_checkpoint_is_guided_in_half_precision(semantic_map, dtype, order):
    arguments = {"num_inference_steps": 2, "guidance_order": order}
    full = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
    half = LSDMGuidedPipeline.from_pretrained(small_checkpoint(), dtype=dtype)
    for pipe in (full, half):
        pipe.set_progress_bar_config(disable=True)
    expected = sample(full, semantic_map, ALL, **arguments).astype(int)
    difference = np.abs(sample(half, semantic_map, ALL, **arguments).astype(int) - expected)
    assert difference.mean() < (30 if dtype == torch.bfloat16 else 5)  # HU


@pytest.mark.slow
def test_a_saved_variant_is_guided(tmp_path, semantic_map):
    labels = semantic_map[32:, 64:]
    pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint(), dtype=torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    loaded = LSDMGuidedPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    expected, seen = (sample(each, labels, ALL, num_inference_steps=1).astype(int) for each in (pipe, loaded))
    assert np.abs(seen - expected).mean() < 1


def test_interrupt_stops_the_loop(pipe, semantic_map):
    steps = []

    def stop_after_two(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = step == 1
        return tensors

    stopped = sample(pipe, semantic_map, num_inference_steps=5, callback_on_step_end=stop_after_two)
    assert steps == [0, 1] and stopped.shape == (1, 96, 128)

    def stop_from_outside(pipeline, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True  # the pipeline itself, as a page's stop button has it
        return tensors

    sample(pipe, semantic_map, num_inference_steps=5, callback_on_step_end=stop_from_outside)
    assert steps == [0, 1, 0] and pipe.interrupt
    sample(pipe, semantic_map, num_inference_steps=2, callback_on_step_end=stop_after_two)
    assert steps == [0, 1, 0, 0, 1] and not pipe.interrupt


def test_timesteps_and_sigmas_are_those_of_the_scheduler(semantic_map):
    pipe = tiny_pipeline(scheduler=diffusers.DDPMScheduler(clip_sample=False, **BETAS))
    pipe.scheduler.set_timesteps(4)
    expected = sample(pipe, semantic_map, ALL, num_inference_steps=4)
    timesteps = pipe.scheduler.timesteps
    for given in (timesteps, timesteps.tolist()):
        np.testing.assert_array_equal(sample(pipe, semantic_map, ALL, timesteps=given), expected)
    pipe = tiny_pipeline(scheduler=diffusers.EulerDiscreteScheduler(**BETAS))
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append(pipe.scheduler.sigmas.tolist())
        return {}

    sample(pipe, semantic_map, sigmas=[10.0, 4.0, 1.0, 0.0], callback_on_step_end=watch)
    assert len(seen) == 3 and seen[0] == pytest.approx([10.0, 4.0, 1.0, 0.0], rel=1e-3)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_threads_may_share_a_pipeline(semantic_map, scheduler):
    """Each thread gets the picture of its own scale, seed and number of steps, however their steps alternate."""
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    jobs = [(0, 1.0, 4), (1, 200.0, 6), (2, 50.0, 5)]

    def make(job, callback=None):
        seed, scale, steps = job
        arguments = {"num_inference_steps": steps, "callback_on_step_end": callback}
        return sample(pipe, semantic_map, ALL, seed, guidance_scale=scale, **arguments)

    expected = [make(job) for job in jobs]
    barrier = threading.Barrier(len(jobs))

    def meet(pipeline, step, timestep, tensors):
        if step < 4:
            barrier.wait(timeout=600)  # a busy machine
        return {}

    with ThreadPoolExecutor(len(jobs)) as pool:
        made = list(pool.map(lambda job: make(job, meet), jobs))
    for picture, alone in zip(made, expected, strict=True):
        np.testing.assert_array_equal(picture, alone)
    modules = (pipe.vae, *pipe.classifiers.values())
    assert all(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_vae_slicing_and_tiling_have_their_switches(pipe):
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    assert pipe.vae.use_slicing and pipe.vae.use_tiling
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    assert not pipe.vae.use_slicing and not pipe.vae.use_tiling
