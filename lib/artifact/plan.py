"""Which notebooks the published record holds for which embedded model."""

from lib.engine.embedded import MODELS

# Beside what lib/engine/embedded.py lists: 05, which takes long, on every model that fails at naturalistic questions;
# 03 on the end-to-end model of Gemma's scheme, which was there before the staged one.
MORE = {
    **dict.fromkeys(("qwen_style", "gemma_style", "pixtral_style", "joint", "qwen_joint", "pixtral_joint"), ("05",)),
    "gemma_joint": ("03", "05"),
}
PLAN = {
    model.name: model.notebooks if model.notebooks is None else (*model.notebooks, *MORE.get(model.name, ()))
    for model in MODELS
    if model.notebooks != ()
}
