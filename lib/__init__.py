"""The library of this artifact, in folders that follow the pipeline; notebooks only `import lib`.

A folder imports only from the floors below it (pyproject.toml, tool.importlinter).
"""

import os
import warnings

# Threads of GNU OpenMP, which PyTorch uses on Linux, spin while they wait and take the cores from other processes: two
# runs at once took twelve times as long. It is read when torch is loaded, so it is set before; the user's own setting
# wins. (LLVM and Intel call the same KMP_BLOCKTIME.)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

warnings.filterwarnings("ignore", message="IProgress not found")  # without widgets progress bars are plain text: fine
