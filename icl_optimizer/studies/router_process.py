"""The router as people run it, ``icl-optimizer route``, in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icl_optimizer.environments.fleet.config import FleetConfig, dump_fleet, load_fleet
from icl_optimizer.studies.child import Child, end_with_parent, free_port

KEY = "key-of-the-load-generator"
_KEY_ENV = "ICL_OPTIMIZER_STUDY_KEY"


class RouterProcess(Child):
    """A router in front of a fleet, with a key.

    Args:
        fleet: Its servers.
        folder: For the fleet file and what the router prints.
        policy: Who decides.
        options: Further options of ``icl-optimizer route``.

    Attributes:
        url: Base URL for clients.
        headers: What a request needs.
    """

    def __init__(
        self,
        fleet: FleetConfig,
        folder: Path,
        policy: str = "shortest-queue",
        options: Sequence[str] = (),
    ) -> None:
        """Start it and wait until it answers."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "fleet.yaml"
        file.write_text(dump_fleet(fleet))
        port = free_port()
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.headers = {"Authorization": f"Bearer {KEY}"}
        env = {_KEY_ENV: KEY}
        command = [
            *(sys.executable, "-m", "icl_optimizer.studies.router_process"),
            *("route", str(file), "--policy", policy),
            *("--port", str(port), "--keys-env", _KEY_ENV, *options),
        ]
        super().__init__(command, f"{self.root}/health", folder / "router.log", env)

    def fill_disk(self) -> None:
        """Let nothing that the router writes reach a file, as on a full disk."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        """Let it write again."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, unlimited)

    def status(self) -> dict[str, Any]:
        """Return what the router says about itself."""
        request = urllib.request.Request(f"{self.root}/status", headers=self.headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        return told


def fleet_at(urls: Mapping[str, str], **fields: Any) -> FleetConfig:
    """Return a fleet of OpenAI-compatible servers.

    Args:
        urls: Base URL of each server by name.
        **fields: Further fields of every server.
    """
    servers = [{"name": name, "llm": f"openai:stub@{url}", **fields} for name, url in urls.items()]
    return load_fleet({"servers": servers})


def main() -> None:
    """Run the command line until the parent closes the pipe."""
    end_with_parent()
    from icl_optimizer.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
