"""Reference policies: heuristics, bandits, neighbours, deep RL and oracles, under one contract."""
