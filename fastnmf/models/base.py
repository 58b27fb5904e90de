"""The base of the models: a torch module with a dictionary, which is learned or loaded, moved and
saved with the module."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..data.arrays import Expected, as_numpy32, read_matrix
from ..errors import InvalidInput, NotFitted
from ..fit.options import ELSEWHERE
from ..isolation import isolated, one_at_a_time
from ..solvers.constraints import NON_NEGATIVE, Constraint
from .hints import ATTRIBUTES

if TYPE_CHECKING:
    from typing_extensions import Self

    # not loaded with the class: it brings what only a fit needs
    from ..results.info import FitInfo, OnlineInfo


class DictionaryModel(nn.Module):
    """A module with the buffers D (K, d) and, for models with an offset, offset_ (d,), None until
    there is a dictionary, and its summaries.

    Its class has the attributes nb_concepts, device and offset.
    """

    constraint: ClassVar[Constraint] = NON_NEGATIVE
    # buffers that are loaded here, not by torch
    _OWN_BUFFERS: ClassVar[tuple[str, ...]] = ("D", "offset_")
    nb_concepts: int
    device: str | torch.device
    offset: bool
    D: Tensor | None
    offset_: Tensor | None
    _gram: Tensor | None
    _cross: Tensor | None
    _totals: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.fitted = False
        self.fit_info_: FitInfo | None = None
        self.online_info_: OnlineInfo | None = None
        self._fitted_info: dict[str, Any] = {}
        self.register_buffer("D", None)
        self.register_buffer("offset_", None)
        # statistics of online learning: moved, copied and pickled with the model
        self.register_buffer("_gram", None, persistent=False)
        self.register_buffer("_cross", None, persistent=False)
        self.register_buffer("_totals", None, persistent=False)

    @isolated
    def sanitize_np_input(self, x: Any) -> np.ndarray:
        """Return x (n, d), a tensor, an array or a DataLoader, as a float32 array.

        Raises InvalidInput if it is not 2-D. Not used here; for Overcomplete's users, who may call
        it.
        """
        return as_numpy32(x)

    @isolated
    def sanitize_np_codes(self, z: Any) -> np.ndarray:
        """Return z (n, K), a tensor, an array or a DataLoader, as a float32 array.

        Raises InvalidInput for another shape. Not used here; for Overcomplete's users, who may call
        it.
        """
        return as_numpy32(z, name="Z", columns=self.nb_concepts)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in ATTRIBUTES:
                raise
            model = self.public_class().__name__
            raise AttributeError(
                f"{model} has no {name!r}; it is {ATTRIBUTES[name]} here"
            ) from error

    def __setattr__(self, name: str, value: Any) -> None:
        held = self.__dict__.get("_buffers", {})
        if name in ELSEWHERE and name not in self.__dict__ and name not in held:
            raise AttributeError(f"a model has no {name!r} to set; write {ELSEWHERE[name]}")
        super().__setattr__(name, value)

    @classmethod
    def public_class(cls) -> type[Self]:
        """The class of fastnmf that this class is, or extends."""
        package = __name__.rpartition(".")[0]
        return next(each for each in cls.__mro__ if each.__module__.startswith(package))

    def expected(self, name: str = "A", **more: Any) -> Expected:
        """What data and dictionaries must satisfy."""
        return Expected(name, signed=self.constraint.signed, **more)

    def _assert_fitted(self) -> None:
        if not self.fitted:
            raise NotFitted("the model must be fitted first: call fit(A), or load a dictionary")

    def _set_fitted(self, **info: Any) -> None:
        """Note that D is new; the statistics of online learning belong to the one before."""
        self.fitted = True
        self._fitted_info = info
        self._gram = self._cross = self._totals = self.online_info_ = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as every module does, and let `device` follow; an unfitted model has no tensor."""
        before = self.D
        super()._apply(fn, recurse)
        if before is not None and before.is_meta and self.D is not None and not self.D.is_meta:
            # to_empty of a parent module
            self._forget()
        if self.D is not None:
            moved = self.D.device
        else:
            moved = _device_after(fn, torch.device(self.device))
        if moved != torch.device(self.device):
            self.device = moved
        return self

    def to_empty(self, *, device: str | torch.device | int | None, recurse: bool = True) -> Self:
        """Move as every module does, without values: the model is then not fitted."""
        super().to_empty(device=device, recurse=recurse)
        self._forget()
        return self

    def _forget(self) -> None:
        """Be a model that is not fitted."""
        self.D = self.offset_ = self.fit_info_ = self.online_info_ = None
        self._gram = self._cross = self._totals = None
        self.fitted, self._fitted_info = False, {}

    @one_at_a_time
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load as every module does, or change nothing if it raises. D may be loaded into a model
        that has none yet, and is checked as load_dictionary checks it."""
        names = (*self._buffers, "device", "fitted", "fit_info_", "online_info_", "_fitted_info")
        kept = {name: getattr(self, name) for name in (*names, "_gram", "_cross", "_totals")}
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except Exception:
            for name, value in kept.items():
                setattr(self, name, value)
            raise

    @one_at_a_time
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load D, the offset of a model that has one, and what a subclass has. They are replaced,
        not written to, so that codes computed before keep their gradient."""
        lists = missing_keys, unexpected_keys, error_msgs
        key, of_offset = prefix + "D", prefix + "offset_"
        # torch loads, and reports, all but these
        self._non_persistent_buffers_set.update(self._OWN_BUFFERS)
        try:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        finally:
            self._non_persistent_buffers_set.difference_update(self._OWN_BUFFERS)
        known = {prefix + name for name in self._OWN_BUFFERS if self.offset or name != "offset_"}
        unexpected_keys[:] = [name for name in unexpected_keys if name not in known]
        if key not in state_dict:
            if self.D is not None and strict:
                missing_keys.append(key)
            return
        if self.offset and of_offset not in state_dict and strict:
            missing_keys.append(of_offset)
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        try:
            offset = state_dict.get(of_offset) if self.offset else None
            self._take_dictionary(state_dict[key], offset, assign=assign)
        except (InvalidInput, TypeError) as error:
            error_msgs.append(f"{key} cannot be loaded: {error}")
        else:
            self._load_more(state_dict, prefix, error_msgs)

    def _load_more(self, state_dict: Mapping[str, Any], prefix: str, error_msgs: list[str]) -> None:
        """Load the buffers that a subclass has beside those of every model."""

    def _take_dictionary(self, D: Any, offset: Any, *, assign: bool) -> None:
        """Use D, and the offset, of a state_dict: themselves if `assign`, else copies on the
        model's device, in the dtype of the present dictionary."""
        for name, F in {"D": D, "offset_": D if offset is None else offset}.items():
            if not isinstance(F, Tensor):
                raise TypeError(f"{name} is a {type(F).__name__}; it must be a tensor")
        if torch.device(self.device).type == "meta" and not assign:
            raise InvalidInput(
                "the model is on the meta device, which holds no values; give assign=True, or call "
                "to_empty(device='cpu') first"
            )
        self._checked_dictionary(D, D.device if assign else self.device)
        if offset is not None:
            self._checked_offset(offset, D, D.device if assign else self.device)
        if assign:
            self.device = D.device if D.device != torch.device(self.device) else self.device
        elif self.D is not None:
            D = D.to(self.device, self.D.dtype, copy=True)
        else:
            D = D.to(self.device, D.dtype if D.is_floating_point() else torch.float32, copy=True)
        self.D, self.offset_ = D.detach(), None
        if self.offset:
            kept = torch.zeros_like(D[0]) if offset is None else offset.detach()
            self.offset_ = kept if assign else kept.to(D.device, D.dtype, copy=True)
        self.fit_info_ = None
        self._set_fitted()

    def _checked_offset(self, offset: Any, D: Tensor, device: str | torch.device) -> Tensor:
        """An offset (d,) that is given for a dictionary, in its dtype; zeros for None."""
        if offset is None:
            return torch.zeros_like(D[0])
        wanted = (D.shape[1],)
        given = getattr(offset, "shape", None)
        given = np.shape(offset) if given is None else tuple(given)
        if given != wanted:
            raise InvalidInput(f"offset has shape {given}; it must be {wanted}, one per feature")
        row = offset[None] if isinstance(offset, Tensor) else np.asarray(offset)[None]
        return read_matrix(row, device, Expected("offset", signed=True)).to(D.dtype)[0]

    def _checked_dictionary(self, D: Any, device: str | torch.device) -> Tensor:
        D = read_matrix(D, device, self.expected("D"))
        if len(D) != self.nb_concepts:
            raise InvalidInput(
                f"D has {len(D)} rows, and the model has {self.nb_concepts} concepts; make it by "
                f"{self.public_class().__name__}({len(D)})"
            )
        return D


def _device_after(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """The device of a module without tensors after `fn`, which may move it or only change its
    dtype."""
    moved = fn(torch.empty(0, device="cpu")).device
    if moved.type != "cpu" or device.type == "cpu":
        return moved
    try:
        # a change of dtype leaves a meta tensor where it is; a move to the CPU does not, or cannot
        # be done
        return device if fn(torch.empty(0, device="meta")).device.type == "meta" else moved
    except NotImplementedError:
        return moved
