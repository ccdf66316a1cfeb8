"""Changes of colour as one 3x3 matrix on RGB."""

import numpy as np

TO_YIQ = np.array(((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))
FROM_YIQ = np.linalg.inv(TO_YIQ)


def colour_matrix(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3, 3) float32 on RGB: hue turned by ``hue`` turns, saturation and value gained by 1 + the others.

    All three are linear in YIQ: a rotation and a gain of the (I, Q) plane, and a gain of everything.
    """
    angle, gain = 2 * np.pi * hue, 1 + saturation
    turn = np.array(
        (
            (1, 0, 0),
            (0, gain * np.cos(angle), -gain * np.sin(angle)),
            (0, gain * np.sin(angle), gain * np.cos(angle)),
        )
    )
    return (FROM_YIQ @ turn @ TO_YIQ * (1 + value)).astype(np.float32)
