"""The program of Prefect's embedded server, which `server.start_embedded` starts beside a run.

Its argument is the number of an open socket that listens; its input stays open as long as the run lives.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading

from cutline.flows.orchestration.prefect_server import serve


def end_with_input() -> None:
    """End this process with its input, which the run alone holds open: with that, whatever ends it."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    gc.set_threshold(5_000)  # as in cutline.flows.cli.main
    threading.Thread(target=end_with_input, daemon=True).start()
    serve(sockets=[socket.socket(fileno=int(sys.argv[1]))])
