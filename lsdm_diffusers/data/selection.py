"""Which slices of a scan are taken, and to which split a patient belongs."""

import hashlib
from collections.abc import Sequence


def check_slice_fraction(slice_fraction: float) -> None:
    """Raise ValueError unless `slice_fraction` is above 0 and at most 1."""
    if not 0 < slice_fraction <= 1:
        raise ValueError(f"`slice_fraction` is {slice_fraction}, but a share above 0 and up to 1 is needed.")


def check_split_fractions(validation_fraction: float, test_fraction: float) -> None:
    """Raise ValueError unless both shares are at least 0 and leave something for training."""
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"`validation_fraction` is {validation_fraction} and `test_fraction` {test_fraction}, "
            "but shares of at least 0 with a sum below 1 are needed."
        )


def choose_slices(num_slices: int, nodule_slices: Sequence[int], slice_fraction: float) -> tuple[int, ...]:
    """Choose a share of a scan's slices: first those with nodules, then others; each group is spread evenly.

    Args:
        num_slices: of the scan.
        nodule_slices: indices of the slices with nodules, from 0.
        slice_fraction: share of the slices, above 0 and up to 1; at least one slice is taken.

    Returns:
        Indices in ascending order.

    Raises:
        ValueError: for another `slice_fraction`.

    >>> choose_slices(20, [3, 4], 0.2)
    (3, 4, 6, 15)
    """
    check_slice_fraction(slice_fraction)
    count = max(1, round(slice_fraction * num_slices))
    with_nodules = _evenly(sorted(nodule_slices), count)
    without_nodules = sorted(set(range(num_slices)) - set(nodule_slices))
    return tuple(sorted(with_nodules + _evenly(without_nodules, count - len(with_nodules))))


def _evenly(candidates: Sequence[int], count: int) -> list[int]:
    """`count` of the candidates, spread evenly; all of them if they are fewer."""
    if count >= len(candidates):
        return list(candidates)
    return [candidates[int((i + 0.5) * len(candidates) / count)] for i in range(count)]


def split_of_patient(patient_id: str, validation_fraction: float, test_fraction: float, seed: int = 0) -> str:
    """Draw the split of a patient from a hash of id and seed alone, so that other patients do not change it.

    Args:
        patient_id: of the scan.
        validation_fraction: share of the patients, on average.
        test_fraction: share of the patients, on average.
        seed: another seed, another split.

    Returns:
        "train", "validation" or "test".

    Raises:
        ValueError: for shares below 0, or with a sum of 1 and more.
    """
    check_split_fractions(validation_fraction, test_fraction)
    digest = hashlib.sha256(f"{seed}:{patient_id}".encode()).digest()
    drawn = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    if drawn < test_fraction:
        return "test"
    return "validation" if drawn < test_fraction + validation_fraction else "train"
