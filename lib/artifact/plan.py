"""Which notebooks the published record holds for which embedded model."""

from lib.engine.embedded import MODELS

# Beside what lib/engine/embedded.py lists: 05, which takes long, on models with other position schemes; 03 on the one
# that stands for Gemma's scheme, the components of which no staged model shows yet.
MORE = {"qwen_style": ("05",), "pixtral_style": ("05",), "joint": ("05",), "gemma_joint": ("03",)}
PLAN = {
    model.name: model.notebooks if model.notebooks is None else (*model.notebooks, *MORE.get(model.name, ()))
    for model in MODELS
    if model.notebooks != ()
}
