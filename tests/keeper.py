# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the keeper of standalone workers: hands out descriptors, unlinks the name, echoes one message each."""

import os
import socket
import sys
import tempfile

from resilient.checkpoint.arena import create_arenas
from resilient.link.board import Board
from resilient.link.channel import Channel, Closed, send_descriptors
from resilient.link.messages import FROM_WORKER, Begin, Note


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[sys.argv.index("--listen") + 1]))
    ranks = int(sys.argv[sys.argv.index("--ranks") + 1])
    board, arenas = Board.create(ranks), create_arenas(ranks, tempfile.gettempdir())
    channels = []
    for _ in range(ranks):
        sock, _ = listener.accept()
        rank = int(sock.recv(4))
        send_descriptors(sock, [board.fd, *(slot.fd for slot in arenas[rank])])
        channels.append((rank, Channel(sock, FROM_WORKER)))
    os.unlink(listener.getsockname())
    for rank, channel in channels:
        note = channel.receive()
        assert isinstance(note, Note)
        channel.send(Begin(attempt=rank + 1, checkpoints=f"{note.text} {os.getsid(0) == os.getpid()}"))
    for _, channel in channels:
        try:
            channel.receive()
        except Closed:
            continue


main()
