"""Arrays as JSON: they come back as they were, and what a dishonest browser sends is refused."""

import json

import numpy as np
import pytest

from lsdm_diffusers.demo.packed_array import pack_array, unpack_array


def test_packed_arrays_come_back_and_liars_are_refused():
    hu = np.arange(-50, 50, dtype=np.int16).reshape(10, 10)
    assert (unpack_array(json.loads(json.dumps(pack_array(hu))), "int16") == hu).all()
    packed = pack_array(hu)
    bomb = pack_array(np.zeros((1000, 1000), np.int16))
    for wrong in (
        None,
        [],
        {**packed, "dtype": "uint8"},
        {**packed, "shape": [10, 11]},
        {**packed, "shape": [10**6, 10**6]},
        {**packed, "shape": [True, 100]},
        {**packed, "data": "%%%"},
        {**packed, "data": packed["data"][:20]},
        {**bomb, "shape": [10, 10]},
    ):
        with pytest.raises(ValueError, match="picture"):
            unpack_array(wrong, "int16")
