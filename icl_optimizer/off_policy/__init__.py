"""What another policy would have earned, estimated from logged decisions and their chances."""

from icl_optimizer.off_policy.epsilon import EpsilonGreedy
from icl_optimizer.off_policy.estimators import Logged, Target, Value, estimate
from icl_optimizer.off_policy.evaluation import Evaluation, PolicyValue, Support, evaluate
from icl_optimizer.off_policy.recording import record
from icl_optimizer.off_policy.records import DecisionRecord, read_records, write_records
from icl_optimizer.off_policy.targets import chances_of
from icl_optimizer.off_policy.verdict import verdicts

__all__ = [
    "DecisionRecord",
    "EpsilonGreedy",
    "Evaluation",
    "Logged",
    "PolicyValue",
    "Support",
    "Target",
    "Value",
    "chances_of",
    "estimate",
    "evaluate",
    "read_records",
    "record",
    "verdicts",
    "write_records",
]
