"""What torchrun tells ranks on the CPU of one machine; tests start theirs by it too."""

from __future__ import annotations

import socket


def torchrun_environment(ranks: int) -> list[dict[str, str]]:
    """The environment variables that torchrun gives each of so many ranks on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # a port that nobody listens to
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    common |= {"LOCAL_WORLD_SIZE": str(ranks), "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
