"""A child that does not speak as agreed: `python rogue_child.py HOW FD`.

Knows: frames. Does not know: engines.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from legato import __version__
from legato.errors import ModelFileError
from legato.server import wire


def main(how: str, link: socket.socket) -> None:
    if how == "silent":
        time.sleep(60)
    if how == "leaves":
        os._exit(5)
    if how == "other version":
        link.sendall(wire.frame(wire.Hello("0.0.1")))
        time.sleep(60)
    link.sendall(wire.frame(wire.Hello(__version__)))
    link.recv(1 << 16)
    match how:
        case "refuses":
            link.sendall(wire.frame(wire.Refused(wire.fault_of(ModelFileError("m.gguf", "magic", "is not GGUF")))))
        case "long frame":
            link.sendall(b"\xff\xff\xff\xff")
            time.sleep(60)
        case "empty frame":
            link.sendall(b"\0\0\0\0")
            time.sleep(60)
        case "garbage":
            link.sendall(b"\0\0\0\x05hello")
            time.sleep(60)
        case "half a frame":
            link.sendall(b"\0\0\1\0abc")
        case "our own words":
            link.sendall(wire.frame(wire.Start(__version__, {})))
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
