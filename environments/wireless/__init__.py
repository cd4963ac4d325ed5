"""Downlink of a cell among its neighbours: 3GPP urban channel, proportional-fair scheduling."""

from .channel import Channel, ChannelDraws, FixedChannel
from .config import RadioConfig
from .network import RadioNetwork
from .scalar import ScalarRadioNetwork
from .urban import UrbanChannel

__all__ = [
    "Channel",
    "ChannelDraws",
    "FixedChannel",
    "RadioConfig",
    "RadioNetwork",
    "ScalarRadioNetwork",
    "UrbanChannel",
]
