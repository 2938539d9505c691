"""Which notebooks the published record holds for which embedded model."""

from lib.engine.embedded import MECHANISM, MODELS

ENHANCEMENT = ("05",)  # asked of every model that the notebooks about the mechanism run on
PLAN = {
    model.name: model.notebooks if model.notebooks != MECHANISM else (*MECHANISM, *ENHANCEMENT)
    for model in MODELS
    if model.notebooks != ()
}
