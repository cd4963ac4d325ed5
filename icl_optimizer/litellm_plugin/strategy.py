"""A strategy for ``litellm.Router``: LiteLLM filters, a policy chooses, callbacks teach it."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.router import CustomRoutingStrategyBase, Router
from pydantic import ValidationError

from icl_optimizer.errors import invalid_fields, unknown_name
from icl_optimizer.litellm_plugin.asked import asked_of, callers_fault, metadata_of
from icl_optimizer.litellm_plugin.group import Attempt, Deployment, DeploymentGroup, deployment_id
from icl_optimizer.litellm_plugin.loop_thread import LoopThread
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.router.settings import RouterSettings

if TYPE_CHECKING:
    from icl_optimizer.router.classifier import TaskClassifier

_STAMP = "icl_optimizer_request"
_FORGOTTEN_S = 1200.0
"""Seconds after which a request of which nothing was heard no longer counts as on its way."""

_SETTINGS = ("llm", "agent", "options", "seed", "explore", "learn")
Key = tuple[str, str]


class PolicyRouting(CustomLogger, CustomRoutingStrategyBase):  # type: ignore[misc]
    """Lets a policy choose among the deployments that LiteLLM would choose from.

    A custom strategy replaces LiteLLM's whole selection, its cooldowns included. This one first has
    LiteLLM leave out what it would not ask: deployments that cool down, are blocked, belong to
    other tags, teams or orders, or whose context window is too small; where nothing is left,
    LiteLLM's own error is raised. Among the rest the policy decides.

    Args:
        router: Whose selection it is to replace; :func:`route_with` does.
        settings: Which policy decides.
        deadline_s: Deadline of a request that names none, seconds.

    Raises:
        ConfigurationError: The policy is unknown.
    """

    def __init__(self, router: Router, settings: RouterSettings, deadline_s: float = 10.0) -> None:
        """Check the name of the policy; groups of deployments are read when they are asked for."""
        super().__init__()
        self._router, self._settings, self._deadline_s = router, settings, deadline_s
        self._in_thread = get_policy_spec(settings.policy).needs_llm
        # by it LiteLLM tells the callbacks of two routers apart
        self.identity = uuid.uuid4().hex
        self._groups: dict[str, DeploymentGroup] = {}
        self._under_way: dict[Key, list[tuple[DeploymentGroup, Attempt]]] = {}
        self._guard = threading.RLock()
        self._classifier: TaskClassifier | None = None
        self._own_loop: LoopThread | None = None

    @property
    def groups(self) -> Mapping[str, DeploymentGroup]:
        """What is known so far, by model name."""
        return self._groups

    def serves(self, router: Router) -> bool:
        """Whether ``router`` is the one, and asks this strategy."""
        asked = getattr(router.async_get_available_deployment, "__self__", None)
        return router is self._router and asked is self

    def close(self) -> None:
        """Give the router its own selection back, and stop listening."""
        litellm.logging_callback_manager.remove_callback_from_all_lists(self)
        if self.serves(self._router):
            self._router._reset_custom_routing_strategy()
        if self._own_loop is not None:
            self._own_loop.close()
            self._own_loop = None

    # -- selection -----------------------------------------------------------------------------

    async def async_get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[Any] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the entry of LiteLLM's model list that a request goes to.

        Args:
            model: Name that the caller asked for.
            messages: Of a chat.
            input: Of an embedding.
            specific_deployment: Whether ``model`` names a single deployment.
            request_kwargs: The request; ``metadata`` may hold ``deadline_s`` and ``task_type``.
        """
        kwargs = {} if request_kwargs is None else request_kwargs
        hooked = await self._router.async_pre_routing_hook(
            model=model,
            request_kwargs=kwargs,
            messages=messages,
            input=input,
            specific_deployment=specific_deployment,
        )
        if hooked is not None:
            model, messages = hooked.model, hooked.messages
        healthy = await self._router.async_get_healthy_deployments(
            model=model,
            request_kwargs=kwargs,
            messages=messages,
            input=input,
            specific_deployment=specific_deployment,
        )
        if isinstance(healthy, dict):
            return healthy
        task, deadline_s = await self._asked(model, messages, input, kwargs)
        if self._in_thread:
            return await asyncio.to_thread(self._choose, model, healthy, task, deadline_s, kwargs)
        return self._choose(model, healthy, task, deadline_s, kwargs)

    def get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[Any] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the same for ``router.completion``; the work is done in a loop of its own."""
        with self._guard:
            if self._own_loop is None:
                self._own_loop = LoopThread()
        return self._own_loop.run(
            self.async_get_available_deployment(
                model, messages, input, specific_deployment, request_kwargs
            )
        )

    def _choose(
        self,
        model: str,
        healthy: list[Deployment],
        task: str,
        deadline_s: float,
        kwargs: dict[str, Any],
    ) -> Deployment:
        by_id = {deployment_id(d): d for d in healthy}
        group = self._group(model, by_id)
        attempt = group.choose(task, deadline_s, by_id.keys())
        name = group.ids[attempt.server]
        with self._guard:
            self._forget_old()
            key = self._stamped(kwargs), name
            self._under_way.setdefault(key, []).append((group, attempt))
        return by_id[name]

    def _group(self, model: str, healthy: Mapping[str, Deployment]) -> DeploymentGroup:
        """Return the group of a model; deployments that came later make a new one."""
        with self._guard:
            group = self._groups.get(model)
            if group is None or not healthy.keys() <= set(group.ids):
                listed = self._router.get_model_list(model_name=model) or []
                found = {deployment_id(d): d for d in listed} | dict(healthy)
                group = self._groups[model] = DeploymentGroup(list(found.values()), self._settings)
            return group

    def _stamped(self, kwargs: dict[str, Any]) -> str:
        """Return the request's mark; LiteLLM hands the metadata back with its callbacks."""
        name = "litellm_metadata" if "litellm_metadata" in kwargs else "metadata"
        metadata = kwargs.setdefault(name, {})
        stamp = metadata.get(_STAMP)
        if not isinstance(stamp, str) or not any(key[0] == stamp for key in self._under_way):
            stamp = metadata[_STAMP] = uuid.uuid4().hex
        return stamp

    async def _asked(
        self,
        model: str,
        messages: list[dict[str, str]] | None,
        input: str | list[Any] | None,
        kwargs: Mapping[str, Any],
    ) -> tuple[str, float]:
        """Return task type and deadline of a request."""
        try:
            task, deadline_s = asked_of(kwargs, self._deadline_s)
        except ValueError as error:
            raise litellm.BadRequestError(str(error), model=model, llm_provider="") from error
        if task is None:
            task = await asyncio.to_thread(self._classified, messages, input)
        return task, deadline_s

    def _classified(
        self, messages: list[dict[str, str]] | None, input: str | list[Any] | None
    ) -> str:
        """Return the task type that the words of a request suggest."""
        from icl_optimizer.router.classifier import TaskClassifier, prompt_text

        with self._guard:
            if self._classifier is None:
                self._classifier = TaskClassifier()
        body = {"messages": messages} if messages else {"prompt": input or ""}
        return self._classifier.classify(prompt_text(body))[0]

    # -- what became of requests -----------------------------------------------------------------

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Learn from an answer."""
        self._over(kwargs, answered=True)

    async def async_log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Learn from a failure."""
        self._over(kwargs, answered=False)

    def log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Learn from an answer to ``router.completion``."""
        self._over(kwargs, answered=True)

    def log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Learn from a failure of ``router.completion``."""
        self._over(kwargs, answered=False)

    def _over(self, kwargs: Mapping[str, Any], *, answered: bool) -> None:
        parameters = kwargs.get("litellm_params") or {}
        stamp = metadata_of(parameters).get(_STAMP)
        name = (parameters.get("model_info") or {}).get("id")
        with self._guard:
            found = self._under_way.get((str(stamp), str(name)), [])
            if not found:
                # another router's request, or the second report of the same one
                return
            group, attempt = found.pop(0)
            if not found:
                del self._under_way[str(stamp), str(name)]
        if kwargs.get("cache_hit") or (not answered and callers_fault(kwargs.get("exception"))):
            group.forget(attempt)
        else:
            group.finish(attempt, answered=answered)

    def _forget_old(self) -> None:
        """Drop requests of which nothing was heard; the oldest come first."""
        limit = time.monotonic() - _FORGOTTEN_S
        for key, found in list(self._under_way.items()):
            if found[-1][1].began > limit:
                return
            for group, attempt in self._under_way.pop(key):
                group.forget(attempt)


def route_with(
    router: Router,
    policy: str = "icl-predict",
    *,
    deadline_s: float = 10.0,
    **settings: Any,
) -> PolicyRouting:
    """Let ``policy`` choose among the deployments of a router, and learn from what happens.

    Args:
        router: Its selection is replaced.
        policy: A policy of slo-scheduling.
        deadline_s: Deadline of a request that names none, seconds.
        **settings: ``llm``, ``agent``, ``options``, ``seed``, ``explore`` or ``learn``, as in
            :class:`~icl_optimizer.router.settings.RouterSettings`.

    Returns:
        The strategy; ``close()`` gives the router its own selection back.

    Raises:
        ConfigurationError: The policy or a setting is unknown.
    """
    strategy = PolicyRouting(router, plugin_settings(policy, settings), deadline_s)
    router.set_custom_routing_strategy(strategy)
    litellm.logging_callback_manager.add_litellm_callback(strategy)
    return strategy


def plugin_settings(policy: str, settings: Mapping[str, Any]) -> RouterSettings:
    """Return the settings of a strategy.

    Raises:
        ConfigurationError: One is unknown or not valid.
    """
    for name in settings:
        if name not in _SETTINGS:
            raise unknown_name("setting of the plug-in", name, _SETTINGS)
    try:
        return RouterSettings(policy=policy, **settings)
    except ValidationError as error:
        raise invalid_fields("the plug-in", error) from error
