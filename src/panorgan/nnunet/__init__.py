"""The only part of panorgan that knows nnU-Net 2: plans, preprocessing, training, model folders."""

import sys
from importlib.util import find_spec
from types import ModuleType


class _NotInstalled(ModuleType):
    """Stands for a package that nnU-Net imports at its start and panorgan never calls.

    So a machine without it, such as one that nothing can be downloaded to, need not have it.
    """

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # what Python itself asks of any module
            raise AttributeError(name)
        raise ModuleNotFoundError(f"{self.__name__} is not installed", name=self.__name__)


if "SimpleITK" not in sys.modules and find_spec("SimpleITK") is None:
    sys.modules["SimpleITK"] = _NotInstalled("SimpleITK")
