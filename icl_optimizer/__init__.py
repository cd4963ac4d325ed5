"""A language model makes network decisions by in-context learning.

Importing the package registers the environments with Gymnasium. It loads no model, opens no
connection and imports neither torch nor LangChain; the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from icl_optimizer.environments.registry import make as make_environment

if TYPE_CHECKING:
    from icl_optimizer.agent import ICLAgent, ICLConfig
    from icl_optimizer.comparison.config import ComparisonConfig
    from icl_optimizer.comparison.runner import compare
    from icl_optimizer.decision import Decision, Outcome
    from icl_optimizer.exploration import Exploration
    from icl_optimizer.llm.loading import load_llm
    from icl_optimizer.llm.scripted import FunctionLLM, ScriptedLLM
    from icl_optimizer.policies import make_policy
    from icl_optimizer.policy import Policy
    from icl_optimizer.problem import Category, Context, Problem, Quantity
    from icl_optimizer.report import write_report

__version__ = "0.1.0"

_PLACES = {
    "ICLAgent": "agent",
    "ICLConfig": "agent",
    "ComparisonConfig": "comparison.config",
    "compare": "comparison.runner",
    "Decision": "decision",
    "Outcome": "decision",
    "Exploration": "exploration",
    "load_llm": "llm.loading",
    "FunctionLLM": "llm.scripted",
    "ScriptedLLM": "llm.scripted",
    "make_policy": "policies",
    "Policy": "policy",
    "Category": "problem",
    "Context": "problem",
    "Problem": "problem",
    "Quantity": "problem",
    "write_report": "report",
}

__all__ = [
    "Category",
    "ComparisonConfig",
    "Context",
    "Decision",
    "Exploration",
    "FunctionLLM",
    "ICLAgent",
    "ICLConfig",
    "Outcome",
    "Policy",
    "Problem",
    "Quantity",
    "ScriptedLLM",
    "compare",
    "load_llm",
    "make_environment",
    "make_policy",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module 'icl_optimizer' has no attribute '{name}'")
    value = getattr(import_module(f"icl_optimizer.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
