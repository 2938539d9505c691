"""Which notebooks the published record holds for which embedded model."""

from lib.engine.embedded import MODELS

ENHANCED = ("qwen_style",)  # beside the default model: notebook 05, which takes long, also runs on these
PLAN = {
    model.name: (*model.notebooks, "05") if model.name in ENHANCED else model.notebooks
    for model in MODELS
    if model.notebooks != ()
}
