"""Lines of the summary of a fit for what is not the default."""

from __future__ import annotations

from typing import Any


def special_lines(info: Any) -> dict[str, str]:
    """Lines of a FitInfo that are printed only where something other than the default was run."""
    lines: dict[str, str] = {}
    if info.alpha_Z or info.alpha_D:
        lines["penalties"] = (
            f"alpha_Z {info.alpha_Z:g}, alpha_D {info.alpha_D:g}, l1_ratio {info.l1_ratio:g}; "
            f"objective {info.objective:.6g}"
        )
    if info.n_init > 1:
        tried = [error for error in info.start_errors if error < float("inf")]
        lines["starts"] = (
            f"number {info.best_start + 1} of {info.n_init} went on; errors after short runs "
            f"{min(tried):.4g} to {max(tried):.4g}, {info.start_iterations:,} iterations"
        )
    if info.sample_rows is not None:
        lines["sample"] = _sample_text(info)
    if info.validation_error is not None:
        found = f"error {info.validation_error:.6g}, mean L0 {info.validation_l0:.4g}"
        best = "" if info.best_iteration is None else f" (iteration {info.best_iteration})"
        lines["validation"] = found + best
    if info.weights is not None:
        lines["weights"] = f"of {info.weights}; error, R² and objective are weighted"
    if info.accelerated:
        lines["accelerated"] = "{} + {} half-steps per iteration".format(*info.inner_half_steps)
    if info.cuda_graph:
        lines["CUDA graph"] = f"{info.cuda_graph:,} iterations repeated"
    if info.chunk_rows is not None:
        lines["read in passes"] = f"{info.chunk_rows:,} rows at a time, {info.passes} passes"
    if info.density is not None:
        copied = ", used as a dense copy" if info.dense_copy else ""
        lines["sparse"] = f"{info.density:.3g} of the entries are stored{copied}"
    if info.processes > 1:
        exchanged = f"{info.reduced_bytes:,} bytes exchanged per iteration"
        lines["processes"] = f"{info.processes}, {exchanged}"
    if info.exact_codes:
        lines["codes"] = "exact, at the end"
    if info.codes != "memory":
        lines["codes"] = info.codes + (", exact" if info.exact_codes else "")
    if info.precision != info.dtype:
        drift = "not measured" if info.drift is None else f"{info.drift:.2g} of the residual"
        lines["precision"] = f"{info.precision}, largest drift {drift}"
    return lines


def _sample_text(info: Any) -> str:
    if not info.sample_rows:
        return f"none: too few rows, or too little max_memory; the start is {info.init}"
    return (
        f"{info.sample_rows:,} rows, {info.sample_iterations:,} iterations in "
        f"{info.sample_seconds:.3g} s, error {info.held_out_error:.6g} on rows held out"
    )
