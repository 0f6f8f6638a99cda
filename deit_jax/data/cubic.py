"""Keys' cubic convolution kernel on the host, for resizing images and position embeddings.

On the device the augmentation has other forms (`augment/resample.py`, `augment/geometry.py`),
whose rounding does not depend on the compiler.
"""

import numpy as np


def cubic_kernel(x: np.ndarray, a: float) -> np.ndarray:
    """Weight of a tap at distance x, 0 from 2 on; Pillow's resize has a = -.5, torch a = -.75."""
    x = np.abs(x)
    # In Pillow's order of operations: bit for bit its weights.
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
