"""A child that does not speak as agreed: `python rogue_child.py SAYS_AS_JSON FD`. It imports nothing of Legato.

Knows: bytes to send at once, bytes to send when it was told to start, whether to end after them. Does not know: frames.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def main(says: dict[str, str], link: socket.socket) -> int:
    link.sendall(bytes.fromhex(says["first"]))
    if says["second"]:
        link.recv(1 << 16)
        link.sendall(bytes.fromhex(says["second"]))
    if says["then"] != "ends":
        time.sleep(60)
    return 5


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))))
