"""Language models: embedded, behind an API, or scripted for tests."""

from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.chain import ModelChain
from icl_optimizer.llm.errors import ModelError, PromptTooLongError
from icl_optimizer.llm.guard import GuardOptions, guard
from icl_optimizer.llm.langchain import LangChainModel
from icl_optimizer.llm.llama_server import LlamaServer
from icl_optimizer.llm.llamacpp import LlamaCpp
from icl_optimizer.llm.loading import load_llm, validate_spec
from icl_optimizer.llm.opening import open_llm
from icl_optimizer.llm.requests import allow_model_requests
from icl_optimizer.llm.scripted import FunctionLLM, ScriptedLLM
from icl_optimizer.llm.usage import Usage

__all__ = [
    "Capabilities",
    "FunctionLLM",
    "GuardOptions",
    "LangChainModel",
    "LanguageModel",
    "LlamaCpp",
    "LlamaServer",
    "Message",
    "ModelChain",
    "ModelError",
    "PromptTooLongError",
    "ScriptedLLM",
    "Usage",
    "allow_model_requests",
    "guard",
    "load_llm",
    "open_llm",
    "validate_spec",
]
