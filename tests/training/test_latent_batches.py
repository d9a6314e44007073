"""Batches for the U-Net: which rows and crops are drawn, and what is dropped of map and ratings."""

from collections import Counter

import numpy as np
import pytest
import torch

from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.training.encoded_rows import RATING_UNIT, CachedRows
from lsdm_diffusers.training.latent_batches import BatchPlan, drop_labels, drop_ratings


def make_pool(patients, edge=16, nodules=()):
    """A row for each patient named; the latents of a row are its number, and `nodules` lists rows with a nodule."""
    count = len(patients)
    labels = torch.full((count, edge, edge), 4, dtype=torch.uint8)
    for row in nodules:
        labels[row, 9, 9] = 7
    numbers = torch.arange(count, dtype=torch.float16)[:, None, None, None]
    parts = {"latents": numbers.expand(-1, 3, edge, edge), "map_latents": torch.zeros(count, 3, edge, edge).half()}
    parts |= {"labels": labels, "ratings": torch.full((count, 4, edge, edge), 4 * RATING_UNIT, dtype=torch.uint8)}
    return CachedRows(parts | {"patient": torch.tensor(patients)})


def rows_drawn(plan, pools, batches):
    return Counter(
        int(value) for number in range(batches) for value in plan.draw(pools, number)["latents"][:, 0, 0, 0]
    )


def test_patients_are_drawn_alike_however_many_rows_they_have():
    pools = {"slices": make_pool([1] * 9 + [2])}
    balanced = rows_drawn(BatchPlan(crop_edge=16, batch_size=4), pools, 500)
    assert balanced[9] / 2000 == pytest.approx(1 / 2, abs=0.04) and balanced[0] / 2000 == pytest.approx(
        1 / 18, abs=0.02
    )
    alike = rows_drawn(BatchPlan(crop_edge=16, batch_size=4, balance_patients=False), pools, 500)
    assert alike[9] / 2000 == pytest.approx(1 / 10, abs=0.03)


def test_windows_are_small_many_and_hold_a_nodule():
    pools = {"slices": make_pool([1, 2, 3], nodules=[1])}
    batch = BatchPlan(crop_edge=16, batch_size=1, window_probability=1, window_edge=8).draw(pools, 0)
    assert batch["latents"].shape == (4, 3, 8, 8)
    assert (batch["latents"] == 1).all() and (batch["labels"].flatten(1).amax(1) == 7).all()
    assert (batch["ratings"] == 4).all() and "patient" not in batch


def test_shares_of_crops_and_windows():
    pools = {"slices": make_pool([1], nodules=[0]), "nodules": make_pool([2], edge=4, nodules=[])}
    plan = BatchPlan(crop_edge=16, batch_size=1, nodule_probability=0.2, window_probability=0.3, window_edge=8)
    edges = Counter(plan.draw(pools, number)["latents"].shape[-1] for number in range(1000))
    assert edges[4] / 1000 == pytest.approx(0.2, abs=0.04) and edges[8] / 1000 == pytest.approx(0.3, abs=0.04)


def test_a_batch_depends_on_seed_and_number_alone():
    pools, plan = {"slices": make_pool(list(range(20)))}, BatchPlan(crop_edge=8, batch_size=8)
    first, again, other = plan.draw(pools, 3), plan.draw(pools, 3), plan.draw(pools, 4)
    assert torch.equal(first["latents"], again["latents"]) and not torch.equal(first["latents"], other["latents"])


def test_label_dropout_drops_the_map_or_one_label():
    labels = torch.tensor([[0, 1, 4, 7]]).expand(2000, 4, 4).clone()
    batch = {"labels": labels.clone(), "map_latents": torch.ones(2000, 3, 4, 4)}
    drop_labels(batch, 0.4, np.random.default_rng(0))
    dropped = batch["map_latents"][:, 0] == 0
    assert (batch["labels"][dropped] == SemanticLabel.BACKGROUND).all()
    assert torch.equal(batch["labels"][~dropped], labels[~dropped])
    columns = dropped[:, 0].sum(dim=1)  # each label is one column
    whole_maps, single_labels = (columns == 4).float().mean().item(), (columns == 1).float().mean().item()
    assert whole_maps == pytest.approx(0.2, abs=0.03)
    assert single_labels == pytest.approx(0.2, abs=0.03)
    assert set(columns.tolist()) == {0, 1, 4}


def test_rating_dropout_hides_malignancy_in_the_map_too():
    labels = torch.tensor([[5, 7], [4, 0]]).expand(4000, 2, 2).clone()
    batch = {
        "labels": labels.clone(),
        "map_latents": torch.ones(4000, 3, 2, 2),
        "neutral_map_latents": torch.zeros(4000, 3, 2, 2),
        "ratings": torch.full((4000, 4, 2, 2), 5.0),
    }
    drop_ratings(batch, np.random.default_rng(0))
    dropped = (batch["ratings"] == 0).flatten(2).all(2)
    assert ((batch["ratings"] == 0) | (batch["ratings"] == 5)).all()
    each = 0.1 + 0.9 * 0.2
    assert dropped.float().mean(0).tolist() == pytest.approx([each] * 4, abs=0.03)
    assert dropped.all(1).float().mean().item() == pytest.approx(0.1, abs=0.02)
    hidden = dropped[:, 0]
    assert torch.equal(batch["labels"][~hidden], labels[~hidden])
    assert (batch["labels"][hidden] == torch.tensor([[6, 6], [4, 0]])).all()
    assert (batch["map_latents"][hidden] == 0).all() and (batch["map_latents"][~hidden] == 1).all()
