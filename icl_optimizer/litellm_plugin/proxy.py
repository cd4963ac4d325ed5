"""The strategy for LiteLLM's proxy, which makes its router itself."""

from __future__ import annotations

from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from icl_optimizer.litellm_plugin.strategy import PolicyRouting, plugin_settings, route_with


class ProxyRouting(CustomLogger):  # type: ignore[misc]
    """A callback for the proxy's configuration that lets a policy choose deployments.

    Put two lines into a file beside the proxy's ``config.yaml``, here ``routing.py``::

        from icl_optimizer.litellm_plugin import ProxyRouting
        handler = ProxyRouting("icl-predict")

    and name it there::

        litellm_settings:
          callbacks: routing.handler

    With the first request, and whenever the proxy has made itself another router, the policy takes
    over the router's selection. Each of the proxy's worker processes learns on its own.

    Args:
        policy: A policy of slo-scheduling.
        deadline_s: Deadline of a request that names none, seconds.
        **settings: As for :func:`~icl_optimizer.litellm_plugin.route_with`.

    Raises:
        ConfigurationError: A setting is unknown.
    """

    def __init__(
        self, policy: str = "icl-predict", *, deadline_s: float = 10.0, **settings: Any
    ) -> None:
        """Check the settings."""
        super().__init__()
        plugin_settings(policy, settings)
        self._policy, self._deadline_s, self._settings = policy, deadline_s, settings
        self.routing: PolicyRouting | None = None

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> None:
        """See to it that the proxy's router asks the policy; the proxy calls this first."""
        from litellm.proxy import proxy_server

        self.attach(proxy_server.llm_router)

    def attach(self, router: Any) -> None:
        """Let the policy choose for ``router``, unless it does already."""
        routing = self.routing
        if router is None or (routing is not None and routing.serves(router)):
            return
        if routing is not None:
            routing.close()
        self.routing = route_with(
            router, self._policy, deadline_s=self._deadline_s, **self._settings
        )
