"""Which notebooks the published record holds for which embedded model."""

from lib.engine.embedded import MODELS

# beside the default model: notebook 05, which takes long, also runs on these
ENHANCED = ("qwen_style", "pixtral_style", "joint")
PLAN = {
    model.name: (*model.notebooks, "05") if model.name in ENHANCED else model.notebooks
    for model in MODELS
    if model.notebooks != ()
}
