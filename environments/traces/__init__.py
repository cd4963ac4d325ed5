"""Traces of requests to language models: reading, statistics, features."""

from .features import FEATURES, RobustScaling, engineer, split
from .reading import SHIPPED, check_source, iter_trace, read_trace, trace_name
from .rows import Malformed, MalformedRowsWarning, check_malformed
from .statistics import TokenDistribution, TraceStatistics, summarise
from .trace import Trace

__all__ = [
    "FEATURES",
    "SHIPPED",
    "Malformed",
    "MalformedRowsWarning",
    "RobustScaling",
    "TokenDistribution",
    "Trace",
    "TraceStatistics",
    "check_malformed",
    "check_source",
    "engineer",
    "iter_trace",
    "read_trace",
    "split",
    "summarise",
    "trace_name",
]
