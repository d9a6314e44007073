"""Which of several files at the same place of a series gives the slice: the first one that can be read."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeVar

from ..io.dicom import SliceFile, slice_fault

Place = TypeVar("Place")


class OmittedFile(NamedTuple):
    """A file that is left out."""

    file: SliceFile
    reason: str


def choose_files(
    candidates: Mapping[Place, Sequence[SliceFile]], executor: Executor | None = None
) -> tuple[dict[Place, SliceFile], list[OmittedFile]]:
    """Choose the first readable file of each place. Only files that have a rival are read.

    Args:
        candidates: by place, one file or more in the order of preference.
        executor: reads in parallel if given.

    Returns:
        The file of each place, and the files before it that give no slice. A place without a readable file keeps its
        first file, so that the slice is reported with its reason.
    """
    chosen = {place: files[0] for place, files in candidates.items()}
    left_out: dict[Place, list[OmittedFile]] = {}
    waiting = {place: list(files) for place, files in candidates.items() if len(files) > 1}
    while waiting:
        firsts = {place: files.pop(0) for place, files in waiting.items()}
        reasons: Iterable[str | None] = (executor.map if executor else map)(_fault, firsts.values())
        for (place, file), reason in zip(firsts.items(), reasons, strict=True):
            omitted = left_out.setdefault(place, [])
            if reason is None:
                chosen[place] = file
                del waiting[place]
                continue
            omitted.append(OmittedFile(file, reason))
            if not waiting[place]:
                del waiting[place]
                first = omitted[0]  # the slice is reported with its reason, so its equal copies need no line
                left_out[place] = [
                    other for other in omitted if (other.file.key, other.reason) != (first.file.key, first.reason)
                ]
    return chosen, [omission for omissions in left_out.values() for omission in omissions]


def _fault(file: SliceFile) -> str | None:
    return file.fault or slice_fault(file.path, file.frame)
