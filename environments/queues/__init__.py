"""Servers with FIFO queues: exact, batched, fed by Poisson, bursty or recorded arrivals."""

from icl_optimizer.environments.queues.arrivals import Bursts, draw_arrivals
from icl_optimizer.environments.queues.servers import DROPPED, Finished, QueueBank

__all__ = ["DROPPED", "Bursts", "Finished", "QueueBank", "draw_arrivals"]
