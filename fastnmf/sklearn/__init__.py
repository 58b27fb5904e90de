"""fastnmf with scikit-learn's interface: its estimators, its function, and the patch that puts them
where scikit-learn's are. Needs scikit-learn 1.6 or later; `import fastnmf` does not load it."""

try:
    # later than 1.5
    from sklearn.utils.validation import validate_data as _validate_data  # noqa: F401
except ImportError as error:
    raise type(error)(
        "fastnmf.sklearn needs scikit-learn 1.6 or later: pip install 'fastnmf[sklearn]'"
    ) from error

from .estimator import NMF, non_negative_factorization
from .minibatch import MiniBatchNMF
from .patching import is_patched, patch_sklearn, unpatch_sklearn

__all__ = [
    "NMF",
    "MiniBatchNMF",
    "is_patched",
    "non_negative_factorization",
    "patch_sklearn",
    "unpatch_sklearn",
]
