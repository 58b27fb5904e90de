"""Put fastnmf's estimators and function where scikit-learn's are, and take them away again."""

from __future__ import annotations

import logging
import threading

import sklearn.decomposition

from ..rebinding import rebind

log = logging.getLogger(__name__)
_lock = threading.RLock()


def patch_sklearn() -> list[str]:
    """Bind fastnmf's NMF, MiniBatchNMF and non_negative_factorization in place of scikit-learn's.

    Returns
    -------
    list of str
        The names that were bound, as 'module.name'.

    Notes
    -----
    This binds all module-level names in every imported module, whatever they are called; what is
    imported later finds the new ones in sklearn.decomposition. A second call finds names bound
    since the first.

    The new classes inherit from those they replace, so isinstance holds. Other losses than
    'frobenius' and shuffle=True are computed by scikit-learn, which the logger
    'fastnmf.sklearn.stand_ins' reports once, with the reason. Models made before do not change.

    Examples
    --------
    >>> from fastnmf.sklearn import patch_sklearn, unpatch_sklearn
    >>> names = patch_sklearn()
    >>> from sklearn.decomposition import NMF
    >>> NMF.__module__
    'fastnmf.sklearn.stand_ins'
    >>> names == unpatch_sklearn()
    True
    """
    from . import stand_ins

    with _lock:
        # to itself as well, so that the names of an earlier call are returned too
        names = rebind(
            [*stand_ins.PAIRS, *((new, new) for _, new in stand_ins.PAIRS)],
            but_in=stand_ins.__name__,
        )
        log.info("fastnmf stands in for scikit-learn's NMF at %s", ", ".join(names))
        return names


def unpatch_sklearn() -> list[str]:
    """Bind scikit-learn's own classes and function again, also in modules imported since the patch.

    Returns
    -------
    list of str
        The names that were bound, as 'module.name'; none where nothing is patched.

    Notes
    -----
    Models made while patched can still be used.
    """
    from . import stand_ins

    with _lock:
        swapped = [(new, old) for old, new in stand_ins.PAIRS] if is_patched() else []
        names = rebind(swapped, but_in=stand_ins.__name__)
        log.info("scikit-learn's own NMF is back at %s", ", ".join(names) or "no name")
        return names


def is_patched() -> bool:
    """Return whether `patch_sklearn` is in effect.

    Returns
    -------
    bool
        True from `patch_sklearn` until `unpatch_sklearn`.
    """
    return sklearn.decomposition.NMF.__module__.startswith("fastnmf.")
