"""Policies of this library as LiteLLM's routing strategy.

>>> from icl_optimizer.litellm_plugin import route_with  # doctest: +SKIP
>>> route_with(router, "icl-predict")  # a litellm.Router  # doctest: +SKIP
"""

from __future__ import annotations

from icl_optimizer.errors import MissingDependencyError

INSTALL = "pip install 'icl-optimizer[serve,litellm]'"

try:
    from icl_optimizer.litellm_plugin.proxy import ProxyRouting
    from icl_optimizer.litellm_plugin.strategy import PolicyRouting, route_with
except ModuleNotFoundError as error:
    if error.name != "litellm":
        raise
    raise MissingDependencyError(f"the plug-in needs litellm: {INSTALL}.") from error

__all__ = ["PolicyRouting", "ProxyRouting", "route_with"]
