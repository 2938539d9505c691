"""The kernel notebooks run in when run headlessly: this very interpreter, this very library."""

import os
import subprocess

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default

from lib.places import ROOT


class ThisPython(AsyncKernelManager):
    """A kernel manager that knows no kernel but ipykernel's own for the running interpreter.

    A kernelspec called python3 in the user's Jupyter folder may start another environment; with no folders
    to look in, jupyter_client falls back on the native one.
    """

    @default("kernel_spec_manager")
    def _native_only(self):
        return KernelSpecManager(kernel_dirs=[])

    @default("transport_encryption")  # newer jupyter_client has it and warns about kernels without
    def _where_possible(self):
        return "auto"

    def start_kernel(self, **options):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        quiet = {"TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        quiet["PYTHONWARNINGS"] = "ignore:IProgress not found"  # no widgets in files: bars stay plain text
        # errors of cells are in the notebook; the kernel's own log, and what it says on stderr while it is being
        # stopped, only tell that it was stopped
        options.setdefault("stderr", subprocess.DEVNULL)
        options["extra_arguments"] = [*options.get("extra_arguments", []), "--log-level=CRITICAL"]
        return super().start_kernel(env={**os.environ, "PYTHONPATH": path, **quiet}, **options)
