"""Deciders turn examples and a query into a probability per label, by asking a language model."""

from icl_optimizer.deciders.auto import AutoDecider
from icl_optimizer.deciders.base import Answer, Decider, DeciderCounts
from icl_optimizer.deciders.channel import ChannelDecider
from icl_optimizer.deciders.generate import Constrain, GenerateDecider
from icl_optimizer.deciders.listed import ListedDecider
from icl_optimizer.deciders.permute import Permutation, PermutedDecider, namings
from icl_optimizer.deciders.predict import PredictDecider
from icl_optimizer.deciders.score import CALIBRATIONS, Calibration, ScoreDecider
from icl_optimizer.deciders.style import STYLES, Style

__all__ = [
    "CALIBRATIONS",
    "STYLES",
    "Answer",
    "AutoDecider",
    "Calibration",
    "ChannelDecider",
    "Constrain",
    "Decider",
    "DeciderCounts",
    "GenerateDecider",
    "ListedDecider",
    "Permutation",
    "PermutedDecider",
    "PredictDecider",
    "ScoreDecider",
    "Style",
    "namings",
]
