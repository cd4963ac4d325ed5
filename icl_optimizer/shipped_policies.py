"""The policies that come with the library: presets and how each is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from icl_optimizer.agent import ICLAgent, ICLConfig
from icl_optimizer.baselines.bandit import BanditPolicy
from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.drl_config import (
    CONFIGS,
    PAPER,
    PAPER_BUDGETS,
    PAPER_ENVS,
    SurrogatePpoConfig,
    preset,
)
from icl_optimizer.baselines.embedding import EmbeddingPolicy
from icl_optimizer.baselines.forecasters import TablePolicy
from icl_optimizer.baselines.heuristics import ConstantPolicy, RandomPolicy
from icl_optimizer.baselines.knn import KnnPolicy
from icl_optimizer.baselines.knn_forecaster import KnnForecaster
from icl_optimizer.baselines.linear_forecaster import LinearForecaster
from icl_optimizer.baselines.minilm import MiniLmEncoder
from icl_optimizer.baselines.oracle import OraclePolicy
from icl_optimizer.baselines.queueing import (
    ExpertPolicy,
    LeastConnectionsPolicy,
    LeastLoadedPolicy,
    RoundRobinPolicy,
    ShortestQueuePolicy,
)
from icl_optimizer.baselines.routing import ColumnRule, ForecastRulePolicy
from icl_optimizer.baselines.splitting import (
    FixedSplitPolicy,
    MyopicSplitPolicy,
    NearestRecordPolicy,
)
from icl_optimizer.baselines.surrogate_ppo import SurrogatePpoPolicy
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.exploration import NO_EXPLORATION, Exploration
from icl_optimizer.forecast_agent import ForecastAgent, ForecastConfig
from icl_optimizer.forecasting import ForecastingPolicy
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.policy import Policy
from icl_optimizer.policy_spec import Factory, PolicySpec, Request

ICL_PRESETS: dict[str, ICLConfig] = {
    "icl": ICLConfig(),
    "icl-static": ICLConfig(ageing="none"),
    "icl-latest": ICLConfig(replay="latest", ageing="none", capacity=8, decider="score"),
    "icl-greedy": ICLConfig(ageing="none", exploration=NO_EXPLORATION),
    "icl-paper": ICLConfig(
        replay="prioritized",
        ageing="none",
        exploration=Exploration(try_all_first=False),
        select_keywords=False,
    ),
    "icl-predict": ICLConfig(decider="predict"),
    "icl-guided": ICLConfig(layout="guided"),
}


CAUSAL_TEMPLATE = "The user asks for help with {}. This kind of task is"
"""Best of twelve texts tried on the development words, for embeddings of a causal model."""


def options_of(name: str, options: Mapping[str, Any]) -> ICLConfig:
    """Return the configuration of the in-context policy ``name`` with ``options``.

    Args:
        name: ``icl``, ``icl-latest``, ...
        options: Fields that differ from its preset; ``exploration.start`` reaches into nested
            ones.

    Raises:
        ConfigurationError: An option that does not exist.
        pydantic.ValidationError: A value that is not allowed.
    """
    return ICLConfig(**merged(name, ICL_PRESETS[name].model_dump(), options))


def merged(name: str, fields: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` with ``options``, whose keys may reach into nested ones by dots."""
    for key, value in options.items():
        *path, last = key.split(".")
        place = fields
        for part in path:
            inner = place.get(part)
            if not isinstance(inner, dict):
                raise unknown_name(f"option of '{name}'", key, fields)
            place = inner
        if last not in place:
            raise unknown_name(f"option of '{name}'", last, place)
        place[last] = value
    return fields


def make_icl(request: Request) -> Policy:
    """Return an in-context agent; ``settings`` win over ``options``."""
    if request.model is None:
        raise ConfigurationError(
            f"policy '{request.name}' has no language model; allowed: one given as model=."
        )
    options = {**request.options, **request.settings}
    if request.name == "icl-predict" and request.problem.by_action:
        return _make_forecasting(request, request.model, options)
    config = options_of(request.name, options)
    agent = ICLAgent(
        request.problem,
        request.model,
        config,
        env=request.env,
        seed=request.seed,
        prompts=request.prompts,
    )
    agent.name = request.name
    return agent


def _make_forecasting(request: Request, model: LanguageModel, options: Mapping[str, Any]) -> Policy:
    """Return the agent that foresees each decision on its own."""
    config = ForecastConfig(**merged(request.name, ForecastConfig().model_dump(), options))
    return ForecastAgent(
        request.problem,
        model,
        config,
        env=request.env,
        seed=request.seed,
        prompts=request.prompts,
    )


def make_drl(request: Request) -> Policy:
    """Return a deep-RL policy with the preset of its name, on this problem."""
    usual = preset(request.name, request.problem.name)
    cls = CONFIGS[usual.algorithm]
    config = cls(**usual.model_dump() | request.known_settings(*cls.model_fields))
    make = SurrogatePpoPolicy if isinstance(config, SurrogatePpoConfig) else DrlPolicy
    return make(request.problem, config, name=request.name, env=request.env, seed=request.seed)


def make_random(request: Request) -> Policy:
    """Return the random policy."""
    request.known_settings()
    return RandomPolicy(request.problem, env=request.env, seed=request.seed)


def make_always(action: int) -> Factory:
    """Return the factory of the policy that always takes the ``action``-th decision."""

    def make(request: Request) -> Policy:
        request.known_settings()
        return ConstantPolicy(request.problem, action, name=request.name, env=request.env)

    return make


def make_oracle(request: Request) -> Policy:
    """Return the exhaustive oracle."""
    request.known_settings()
    return OraclePolicy(request.problem, env=request.env, seed=request.seed)


def make_bandit(request: Request) -> Policy:
    """Return the tabular bandit."""
    settings = _ageing(request.name) | request.known_settings("exploration", "ageing")
    policy = BanditPolicy(request.problem, env=request.env, seed=request.seed, **settings)
    policy.name = request.name
    return policy


def make_knn(request: Request) -> Policy:
    """Return k nearest neighbours."""
    known = request.known_settings("exploration", "ageing", "k", "capacity")
    settings = _ageing(request.name) | known
    policy = KnnPolicy(request.problem, env=request.env, seed=request.seed, **settings)
    policy.name = request.name
    return policy


def _ageing(name: str) -> dict[str, Any]:
    return {"ageing": "surprise"} if name.endswith("-ageing") else {}


def make_embedding(request: Request) -> Policy:
    """Return logistic regression on embeddings of the language model, or of MiniLM."""
    settings = request.known_settings("exploration")
    sentence_model = request.name == "embedding-minilm"
    encoder = MiniLmEncoder() if sentence_model else request.model
    if encoder is None:
        raise ConfigurationError(
            f"policy '{request.name}' has no language model; allowed: one given as model=, "
            "or policy 'embedding-minilm'."
        )
    policy = EmbeddingPolicy(
        request.problem,
        encoder,
        template="{}" if sentence_model else CAUSAL_TEMPLATE,
        env=request.env,
        seed=request.seed,
        **settings,
    )
    policy.name = request.name
    return policy


QUEUES = ("slo-scheduling", "load-balancing")
"""Problems in which requests go to servers with queues."""
ROUTING = "qos-routing"
SPLITTING = "layer-splitting"
SERVERS = (*QUEUES, ROUTING)
"""Problems in which columns describe single decisions."""


def make_rule(policy_class: type[Policy]) -> Factory:
    """Return the factory of a classic rule."""

    def make(request: Request) -> Policy:
        request.known_settings()
        return policy_class(request.problem, env=request.env, seed=request.seed)

    return make


def make_expert(request: Request) -> Policy:
    """Return a rule that knows speeds, lengths and scores."""
    settings = request.known_settings("rule")
    return ExpertPolicy(
        request.problem, name=request.name, env=request.env, seed=request.seed, **settings
    )


def make_column_rule(request: Request) -> Policy:
    """Return a rule that looks at one column."""
    request.known_settings()
    return ColumnRule(request.problem, name=request.name, env=request.env, seed=request.seed)


def make_forecast_rule(request: Request) -> Policy:
    """Return a rule that knows what experts cost and what requests do to each other."""
    request.known_settings()
    return ForecastRulePolicy(
        request.problem, name=request.name, env=request.env, seed=request.seed
    )


def make_fixed_split(request: Request) -> Policy:
    """Return a rule that walks to one layer."""
    request.known_settings()
    return FixedSplitPolicy(request.problem, name=request.name, env=request.env, seed=request.seed)


def make_forecaster(policy_class: type[ForecastingPolicy], *options: str) -> Factory:
    """Return the factory of a policy that foresees outcomes from experience."""

    def make(request: Request) -> Policy:
        settings = request.known_settings("rule", "exploration", *options)
        return policy_class(request.problem, env=request.env, seed=request.seed, **settings)

    return make


def _rule(name: str, summary: str, factory: Factory, *environments: str) -> PolicySpec:
    return PolicySpec(
        name, summary, factory, learns=False, steady=True, environments=environments or QUEUES
    )


def _icl(name: str, summary: str) -> PolicySpec:
    return PolicySpec(name, summary, make_icl, needs_llm=True, budget=100)


def _drl(
    name: str, summary: str, budget: int, num_envs: int = 1, queues: int | None = None
) -> PolicySpec:
    """Return a deep-RL policy; ``queues`` is its budget where requests wait for servers."""
    budgets = {} if queues is None else {"slo-scheduling": queues, "load-balancing": queues}
    return PolicySpec(
        name, summary, make_drl, is_drl=True, budget=budget, num_envs=num_envs, budgets=budgets
    )


def _graph(name: str, summary: str, budget: int, num_envs: int) -> PolicySpec:
    known = _drl(name, summary, budget, num_envs)
    return replace(known, environments=("qos-routing",))


def _at_once(name: str, summary: str, budget: int, num_envs: int) -> PolicySpec:
    """Return a learner that is paid what each decision adds, the exact form of the estimator."""
    training = {"impact_penalty": False, "reward": "difference"}
    return replace(_graph(name, summary, budget, num_envs), training=training)


def _paper(name: str, summary: str) -> PolicySpec:
    environments = tuple(PAPER[name])
    budgets = PAPER_BUDGETS[name]
    known = _drl(name, summary, max(budgets.values()), num_envs=8)
    return replace(known, budgets=budgets, envs=PAPER_ENVS[name], environments=environments)


SHIPPED = (
    _icl("icl", "in-context learning"),
    _icl("icl-static", "in-context learning that never forgets, whatever changes"),
    _icl("icl-latest", "in-context learning, latest experience alone (Zhou et al., baseline 1)"),
    _icl("icl-greedy", "in-context learning without exploration (Zhou et al., baseline 2)"),
    _icl("icl-paper", "in-context learning, replay and exploration as in Zhou et al."),
    _icl("icl-predict", "in-context prediction of each decision's outcome, a rule takes the best"),
    _icl("icl-guided", "in-context learning, guided by means, counts and confidence (EVOLvE)"),
    _drl("dqn", "deep Q-learning, common settings", 2000, queues=10_000),
    _drl("dqn-tuned", "deep Q-learning, tuned to need few decisions", 500),
    _drl("dqn-short-memory", "deep Q-learning that replays the last 100 decisions alone", 500),
    _drl("ppo", "proximal policy optimisation, common settings", 4000, num_envs=8, queues=10_000),
    replace(
        _drl("ppo-tuned", "proximal policy optimisation, tuned", 1000, num_envs=8),
        budgets={"load-balancing": 1_000_000},
        envs={"load-balancing": 64},
    ),
    _drl("a2c", "advantage actor-critic, common settings", 8000, num_envs=8, queues=20_000),
    _paper("dqn-paper", "deep Q-learning, settings of the environment's paper"),
    _paper("ppo-paper", "proximal policy optimisation, settings of the environment's paper"),
    _paper("a2c-paper", "advantage actor-critic, settings of the environment's paper"),
    _paper("ppo-surrogate", "ppo-paper that fits a surrogate to its first rewards (Algorithm 1)"),
    replace(
        _paper("ppo-surrogate-shipped", "ppo-paper on rewards of the shipped surrogate"),
        training={"rewards_from": "surrogate"},
    ),
    replace(
        _drl("ppo-split", "proximal policy optimisation, tuned to split", 400_000, num_envs=80),
        training={"from_start": True},
        environments=(SPLITTING,),
    ),
    _at_once("han-ppo", "proximal policy optimisation on the graph of requests", 200_000, 64),
    _at_once("mlp-ppo", "proximal policy optimisation without the graph", 200_000, 64),
    _at_once("han-sac", "soft actor-critic on the graph of requests", 30_000, 16),
    _at_once("mlp-sac", "soft actor-critic without the graph", 30_000, 16),
    _graph("han-sac-paper", "han-sac with state and reward of Yang et al.", 30_000, 16),
    replace(
        _graph("han-ppo-no-impact", "han-ppo without the impact estimator", 200_000, 64),
        training={"impact_penalty": False},
    ),
    PolicySpec("bandit", "mean reward per context and decision", make_bandit, budget=200),
    PolicySpec(
        "bandit-ageing", "bandit that forgets when rewards surprise", make_bandit, budget=200
    ),
    PolicySpec("knn", "nearest neighbours on the observation", make_knn, budget=200),
    PolicySpec("knn-ageing", "knn that forgets when rewards surprise", make_knn, budget=200),
    PolicySpec(
        "embedding",
        "logistic regression on the language model's embeddings",
        make_embedding,
        needs_llm=True,
        budget=200,
    ),
    PolicySpec(
        "embedding-minilm",
        "logistic regression on embeddings of all-MiniLM-L6-v2",
        make_embedding,
        budget=200,
    ),
    PolicySpec(
        "table",
        "chance and reward as seen on average in groups of words",
        make_forecaster(TablePolicy),
        environments=SERVERS,
    ),
    PolicySpec(
        "knn-predict",
        "chance and reward of the most similar requests per server",
        make_forecaster(KnnForecaster, "k"),
        environments=SERVERS,
    ),
    PolicySpec(
        "linear-predict",
        "chance and reward by ridge regression with confidence bonus (LinUCB)",
        make_forecaster(LinearForecaster, "alpha", "ridge"),
        environments=SERVERS,
    ),
    replace(
        _rule("round-robin", "the servers in turn", make_rule(RoundRobinPolicy), *SERVERS),
        roles=("Queue", "Waiting", "Load"),
    ),
    replace(
        _rule(
            "shortest-queue", "fewest requests waiting", make_rule(ShortestQueuePolicy), *SERVERS
        ),
        roles=("Queue", "Waiting"),
    ),
    _rule("least-kv", "least KV memory in use", make_column_rule, ROUTING),
    _rule("quality-greedy", "best predicted quality", make_column_rule, ROUTING),
    _rule("latency-greedy", "least expected latency per token", make_forecast_rule, ROUTING),
    _rule("qos-greedy", "best expected quality in time, costs known", make_forecast_rule, ROUTING),
    _rule(
        "impact-greedy",
        "best expected quality in time less what it puts at risk, costs known",
        make_forecast_rule,
        ROUTING,
    ),
    _rule(
        "least-connections", "fewest active and queued requests", make_rule(LeastConnectionsPolicy)
    ),
    replace(
        _rule(
            "least-loaded",
            "least load: fewest tokens in flight",
            make_rule(LeastLoadedPolicy),
            "load-balancing",
        ),
        roles=("Load",),
    ),
    _rule("shortest-expected-completion", "soonest expected completion, speeds known", make_expert),
    _rule("score-greedy", "best mean score, whatever the queues", make_expert, "slo-scheduling"),
    _rule("score-in-time", "mean score times chance to be in time, speeds known", make_expert),
    _rule("sacrifice", "best chance to be in time, speeds known", make_expert),
    _rule("split-first", "walk to the first layer", make_fixed_split, SPLITTING),
    _rule("split-middle", "walk to the layer halfway", make_fixed_split, SPLITTING),
    _rule("split-last", "walk to the deepest layer", make_fixed_split, SPLITTING),
    _rule(
        "myopic-split",
        "best next reward by the measured table",
        make_rule(MyopicSplitPolicy),
        SPLITTING,
    ),
    _rule(
        "nearest-record",
        "walk to the layer that was best at the nearest noise and loss measured",
        make_rule(NearestRecordPolicy),
        SPLITTING,
    ),
    PolicySpec("random", "every decision with the same chance", make_random, learns=False),
    PolicySpec(
        "oracle",
        "takes the decision that the environment itself knows to be best",
        make_oracle,
        needs_env=True,
        learns=False,
        steady=True,
    ),
    PolicySpec(
        "always-local",
        "always the edge model",
        make_always(0),
        learns=False,
        steady=True,
        environments=("offloading",),
    ),
    PolicySpec(
        "always-offload",
        "always the cloud model",
        make_always(1),
        learns=False,
        steady=True,
        environments=("offloading",),
    ),
)
