"""Names that one process of a machine holds at a time, whoever's it is, without files."""

import errno
import socket


def claim(name: str) -> socket.socket | None:
    """Hold a name until the returned socket is closed or the process ends, however that ends.

    The name is an abstract one of Linux (``unix(7)``): it lies in no folder, so that nothing is
    left of it and no user can be refused for another's permissions. It counts in a container's own
    network only.

    Parameters
    ----------
    name
        Up to 90 characters.

    Returns
    -------
    None if another process holds it, or this one does already.
    """
    found = socket.socket(socket.AF_UNIX)
    try:
        found.bind(f"\0panorgan-{name}")
    except OSError as error:
        found.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return found
