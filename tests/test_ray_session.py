"""Addresses of Ray clusters, apart from tests that keep a session of their own."""

from __future__ import annotations

import socket

import pytest

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.engines import RayCluster
from icl_optimizer.comparison.work import Work
from icl_optimizer.errors import ConfigurationError


def test_where_no_cluster_listens_nobody_waits() -> None:
    pytest.importorskip("ray")
    work = Work(ComparisonConfig(environment="offloading", policies=("random",)), "random", 0)
    with socket.socket() as taken:
        # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=rf"'{address}', and nothing listens there"):
            list(RayCluster(address).run([work]))
