"""What stands in for scikit-learn's estimators and function while they are patched: fastnmf's, and
scikit-learn's own for what fastnmf does not do.

Pickles refer to the classes by their names here, and so load in a process that has not patched.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.decomposition import _nmf

from ..errors import InvalidInput
from . import estimator, minibatch
from .base import BaseNMF
from .batches import Sums

log = logging.getLogger(__name__)

_said: set[str] = set()


class _StandIn:
    """The parts that both classes share; `stands_in_for` is scikit-learn's class."""

    stands_in_for: ClassVar[type]

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        # issubclass(other, original) would call this hook again
        if "stands_in_for" in vars(cls) and cls.stands_in_for in other.__mro__:
            return True
        return NotImplemented

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle; one of scikit-learn's has no options of fastnmf."""
        super().__setstate__({**self._own_options(), **state})

    def fit_transform(
        self, X: Any, y: Any = None, W: Any = None, H: Any = None, **weights: Any
    ) -> np.ndarray:
        if self._falls_back():
            return self.stands_in_for.fit_transform(self, X, y, W=W, H=H, **weights)
        return super().fit_transform(X, y, W=W, H=H, **weights)

    def transform(self, X: Any) -> np.ndarray:
        if self._falls_back():
            return self.stands_in_for.transform(self, X)
        return super().transform(X)

    @classmethod
    def _own_options(cls) -> dict[str, Any]:
        """The options that scikit-learn's class does not have, and their defaults."""
        theirs = inspect.signature(cls.stands_in_for.__init__).parameters
        ours = inspect.signature(cls.__init__).parameters
        return {name: each.default for name, each in ours.items() if name not in theirs}

    def _falls_back(self) -> bool:
        """Whether scikit-learn's own does it; logged once with the reason."""
        why = self._unsupported()
        if why is None:
            return False
        for option, default in self._own_options().items():
            if getattr(self, option) != default:
                raise InvalidInput(
                    f"{option}={getattr(self, option)!r} is an option of fastnmf, which has no "
                    f"{why}; leave one of them out"
                )
        _say(type(self).__name__, why)
        return True


class NMF(_StandIn, estimator.NMF, _nmf.NMF):
    __doc__ = estimator.NMF.__doc__
    stands_in_for = _nmf.NMF


class MiniBatchNMF(_StandIn, minibatch.MiniBatchNMF, _nmf.MiniBatchNMF):
    __doc__ = minibatch.MiniBatchNMF.__doc__
    stands_in_for = _nmf.MiniBatchNMF

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle; with the sums of scikit-learn's, `partial_fit` goes on."""
        super().__setstate__(state)
        frobenius = state.get("_beta_loss") == 2
        if "_sums" not in state and "_components_numerator" in state and frobenius:
            first, second = (state[f"_components_{part}"] for part in ("numerator", "denominator"))
            self._sums = Sums(torch.from_numpy(first), torch.from_numpy(second))
            self._kept = state["_rho"]

    def fit_transform(
        self, X: Any, y: Any = None, W: Any = None, H: Any = None, **weights: Any
    ) -> np.ndarray:
        W = super().fit_transform(X, y, W=W, H=H, **weights)
        # what the other library kept is of other components
        vars(self).pop("_beta_loss" if self._unsupported() is None else "_sums", None)
        return W

    def transform(self, X: Any) -> np.ndarray:
        if self._falls_back():
            self._refuse_other_loss("_beta_loss")
        return super().transform(X)

    def partial_fit(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> MiniBatchNMF:
        if self._falls_back():
            self._refuse_other_loss("_beta_loss")
            vars(self).pop("_sums", None)
            return self.stands_in_for.partial_fit(self, X, y, W=W, H=H)
        self._refuse_other_loss("_sums")
        vars(self).pop("_beta_loss", None)
        return super().partial_fit(X, y, W=W, H=H)

    def _refuse_other_loss(self, kept: str) -> None:
        """Raise InvalidInput where what the library that computes keeps of learning, `kept`, is
        not there: the loss was changed since learning began."""
        if hasattr(self, "components_") and kept not in vars(self):
            raise InvalidInput(
                f"beta_loss={self.beta_loss!r} is not the loss with which the components were "
                "learned: set that again, or begin anew with sklearn.base.clone(model)"
            )


def _function(original: Any) -> Any:
    """What stands in for scikit-learn's function."""

    @functools.wraps(estimator.non_negative_factorization)
    def non_negative_factorization(*given: Any, **named: Any) -> Any:
        parameters = inspect.signature(estimator.non_negative_factorization).bind(*given, **named)
        loss, shuffle = (parameters.arguments.get(each) for each in ("beta_loss", "shuffle"))
        model = estimator.NMF(
            beta_loss="frobenius" if loss is None else loss, shuffle=bool(shuffle)
        )
        why = BaseNMF._unsupported(model)
        if why is None:
            return estimator.non_negative_factorization(*given, **named)
        _say(original.__name__, why)
        return original(*given, **named)

    non_negative_factorization.__module__ = __name__
    return non_negative_factorization


non_negative_factorization = _function(_nmf.non_negative_factorization)

# (scikit-learn's, what stands in for it); not as names, which would be bound as well
PAIRS = (
    (_nmf.NMF, NMF),
    (_nmf.MiniBatchNMF, MiniBatchNMF),
    (_nmf.non_negative_factorization, non_negative_factorization),
)


def _say(name: str, why: str) -> None:
    if why not in _said:
        _said.add(why)
        log.info("%s of scikit-learn is used for %s", name, why)
