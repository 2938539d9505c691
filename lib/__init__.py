"""The library of this artifact, in folders that follow the pipeline; notebooks only `import lib`.

A folder imports only from the floors below it (pyproject.toml, tool.importlinter).
"""

import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # without widgets progress bars are plain text: fine
