"""Functions compiled by numba, once for each kind of machine, and kept for the next process.

numba writes a cache's index before the code that it names, and numbers code without regard to
source, options or processor: processes that start at once could load each other's. So a function
has exactly one signature here, and its cache a folder for its source, versions and processor
alone: whoever writes there, on one machine or on many with a shared home, writes the same.
"""

import inspect
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile


def kernel(signature: object) -> Callable[[Callable], Callable]:
    """Decorator: compile a function for one signature of numba types, or load it from the cache.

    Where nothing can be kept or loaded, it is compiled for this process alone. The source file of
    the function must hold all that is compiled into it.
    """

    def compile_or_load(function: Callable) -> Callable:
        import numba

        before = numba.config.CACHE_DIR
        try:
            folder = cache_folder(function)
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()  # where numba cannot write, it takes other places
            numba.config.CACHE_DIR = str(folder)
            return numba.njit(signature, cache=True, nogil=True)(function)
        except Exception:  # no place, a full disk, a broken file: no reason to stop
            return numba.njit(signature, nogil=True)(function)
        finally:
            numba.config.CACHE_DIR = before

    return compile_or_load


def cache_folder(function: Callable) -> Path:
    """Where the code of a function is kept; it need not exist.

    In ``$NUMBA_CACHE_DIR``, ``$XDG_CACHE_HOME`` or ``~/.cache``, whichever is set first.

    Raises
    ------
    OSError, RuntimeError
        If the function has no source file, or the user no home.
    """
    import llvmlite.binding as llvm
    import numba

    target = (
        numba.__version__,
        llvm.llvm_version_info,
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )
    sources = Path(__file__).read_bytes() + Path(inspect.getfile(function)).read_bytes()
    key = blake2b(sources + repr(target).encode(), digest_size=8).hexdigest()
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "panorgan" / key
