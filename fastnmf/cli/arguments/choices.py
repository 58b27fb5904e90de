"""The words that options take. They are in words, so that help needs no torch; a test compares
them with what there is."""

from __future__ import annotations

SOLVERS = "hals mu pgd anls".split()
STARTS = "auto random nndsvda nndsvd nndsvdar rows spread sample".split()
# those of dictionaries of any signs only
SIGNED_STARTS = ["svd"]
MODELS = ["nmf", "semi", "convex"]
RULES = "change error validation".split()
# of fits that have no rows for validation
PLAIN_RULES = RULES[:2]
FORMS = "auto normal residual".split()
MAPS = "svd tsne umap".split()
METHODS = "auto exact sweeps".split()
YES_OR_NO = {"auto": "auto", "yes": True, "no": False}
HOLDOUTS = "rows entries".split()
RESAMPLES = "rows starts".split()
SHELLS = "bash zsh fish".split()
