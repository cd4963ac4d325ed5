"""Questions with the scores of nine language models, and what can be predicted of a request."""

from .lengths import predict_answer_tokens
from .questions import DEFAULT_EXPERTS, MODELS, Part, Questions, questions

__all__ = [
    "DEFAULT_EXPERTS",
    "MODELS",
    "Part",
    "Questions",
    "predict_answer_tokens",
    "questions",
]
