"""OpenVINO itself, imported without what it would tell of its use.

`import openvino` takes its model converter with it, which then sends a message to a server and
keeps files in the home directory. A converter that is missing is passed over, so it is kept away
meanwhile; that is a third of the import's time, too.
"""

import sys

_CONVERTER = "openvino.tools.ovc"
_keep_away = _CONVERTER not in sys.modules
if _keep_away:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # such an import fails
try:
    import openvino as ov
    from openvino import opset15 as ops
finally:
    if _keep_away:
        del sys.modules[_CONVERTER]

__all__ = ["ops", "ov"]
