"""Write scratchgen/data/digits.npz from scikit-learn's copy of the UCI optical digits.

    pip install scikit-learn && python examples/make_digits.py

The file in the package was made by this script. It holds the 1,797 images in scikit-learn's order,
as `codes` (1797, 8, 8, 1) in 0..16 and `labels` (1797,), both uint8.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parent.parent / "scratchgen" / "data" / "digits.npz"

digits = load_digits()
codes = digits.images.astype(np.uint8)[..., None]
assert codes.shape == (1797, 8, 8, 1)
assert (codes == digits.images[..., None]).all()
np.savez_compressed(TARGET, codes=codes, labels=digits.target.astype(np.uint8))
print(f"wrote {TARGET.name}: {TARGET.stat().st_size} bytes")
