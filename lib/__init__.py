"""The helper library of this artifact; notebooks only `import lib`. DESIGN: each floor imports from the ones below."""

import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # without widgets progress bars are plain text: fine
