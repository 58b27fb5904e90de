"""Messages of the package in the language of the command line: options as they are written there,
and no advice that needs Python."""

from __future__ import annotations

import re

# option of Python → of the command line; those that no English word looks like
_NAMES = {
    "nb_concepts": "--concepts",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("max_iter", "n_init", "max_seconds", "max_memory", "alpha_Z", "alpha_D", "l1_ratio"),
            *("unit_norm", "target_l0", "top_k", "chunk_rows", "checkpoint_seconds", "tol"),
            "density_threshold",
            "strict_convex",
            "image_shape",
        )
    },
}
# those that are an option only where a value follows
_WITH_VALUE = {
    name: f"--{name}"
    for name in (
        *("solver", "init", "seed", "backend", "form", "accelerate", "stop", "revive", "device"),
        "validation",
        *("refit", "codes", "checkpoint", "resume", "header", "concepts", "patches", "offset"),
        *("holdout", "folds", "runs", "resample", "top", "details", "context", "tokens", "map"),
    )
} | {"out": "--out", "candidates": "K"}
_FLAGS = ("unit_norm", "strict_convex", "offset", "revive", "resume", "refit")
_OPTION = re.compile(rf"(?<![\w/.\-])({'|'.join(_NAMES)})(?![\w/\-]|\.\w|=)")
_VALUE = re.compile(
    rf"(?<![\w/.\-])({'|'.join([*_NAMES, *_WITH_VALUE])})=('[^']*'|PosixPath\('[^']*'\)|[^\s,;)?]+)"
)
# a call that changes an array, offered in brackets; the options that a call of Python names
_ADVICE = re.compile(r" \((?:clip with )?[\w.]+\(([^()]*)\)\?\)")
_TUNING = r"(?:NMF\(tuning=|tuning=)?fastnmf\.Tuning\("
_CALL = re.compile(rf"(?:{_TUNING}|NMF\(|fit\(A, )([^()]*)\)+")
_FIXED = {
    "weights=… of fit, encode and nnls, 0 there, ignore it": "--weights W of fit, encode and "
    "show, 0 there, ignore it",
    **{f"{name}= has": f"--{name} has" for name in ("features", "rows", "texts")},
    "weights='stored' are those": "--weights stored are those",
    "; give a mask (n, d), such as weights=~torch.isnan(A)": "; give a file of a mask (n, d)",
    "resume=True needs a file to resume from: fit(A, checkpoint=…)": "--resume needs "
    "--checkpoint FILE",
    "; None is no limit": "",
    # of a model that is fitted
    " solver='anls', which is exact, or": " or",
    ", or None for what is free": "",
    "accelerate='auto' or False": "--accelerate auto or no",
    "without resume ": "without --resume ",
    "give checkpoint= another": "give --checkpoint another",
    "or fastnmf.SemiNMF, which": "or fit with --model semi, which",
}


def of_the_command_line(message: str) -> str:
    """A message of the package in one line, as the command line says it."""
    message = " ".join(message.split())
    for python, ours in _FIXED.items():
        message = message.replace(python, ours)
    message = _ADVICE.sub("", message)
    message = _CALL.sub(r"\1", message)
    message = _VALUE.sub(_with_value, message)
    return _OPTION.sub(lambda found: _NAMES[found[1]], message)


def _with_value(found: re.Match[str]) -> str:
    name, value = found[1], found[2].removeprefix("PosixPath(").removesuffix(")")
    option = _NAMES.get(name) or _WITH_VALUE[name]
    if name in _FLAGS:
        return option if value == "True" else f"no {option}"
    if value in ("None", "'memory'"):
        return f"no {option}"
    return f"{option} {_WORDS.get(value, value.strip(chr(39)))}"


_WORDS = {"True": "yes", "False": "no", "…": "…"}
