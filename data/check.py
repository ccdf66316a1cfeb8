"""Checks of a data set before it is trained on."""

import numpy as np

from data.index import Index


def audit_bins(index: Index, shape: tuple[int, int], *, reach: int) -> str:
    """One line: how many boxes are longer than ``reach`` px in an input of ``shape``.

    ``reach`` is twice what the last bin of the coarsest level stands for: a longer box cannot be expressed
    even from its centre, and comes out cropped.
    """
    scale = np.minimum(shape[0] / index.sizes[:, 0], shape[1] / index.sizes[:, 1])
    longest = (index.boxes[:, 2:] - index.boxes[:, :2]).max(1, initial=0)
    share = np.mean(longest * np.repeat(scale, np.diff(index.offsets)) > reach) if len(longest) else 0.0
    remedy = "; raise model.reg_max or add level 6 to model.levels" if share > 0 else ""
    return f"bins: {share:.1%} of the training boxes are longer than the {reach} px they can express{remedy}"
