"""Two servers with queues, one quick and one slow: delayed outcomes that can be worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import BatchedEnv, Ints, Outcomes, StepResult
from icl_optimizer.llm.scripted import FunctionLLM
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Category, Context, Problem, Quantity
from icl_optimizer.rollout import Rollout

QUICK, SLOW = 0, 1
TASKS = ("plain", "picky")
SERVICE = np.array([1, 3])
"""Steps that each server takes for a task; one task arrives in each step."""
LATEST = 3
"""Steps after which an answer is late."""
REWARD = np.array([[1.0, 0.5], [0.2, 1.0]])
"""Reward by task and server, if in time."""
LONGEST = 5.0


def tiny_queues_problem(horizon: int = 20) -> Problem:
    """A queue of each server and a task that arrived."""
    queues = [
        Quantity(
            f"{label} queue",
            "tasks",
            0.0,
            LONGEST,
            (1.0, 2.0),
            ("empty", "one", "many"),
            i,
            "Queue",
        )
        for i, label in enumerate(("quick", "slow"))
    ]
    task = Category("Task", TASKS, len(TASKS))
    return Problem("tiny-queues", ("quick", "slow"), (*queues, task), horizon)


def situation(quick: str, slow: str, task: str) -> Context:
    return tiny_queues_problem().context([quick, slow, task])


class TinyQueues(BatchedEnv):
    """A task per step; outcomes come at completion, some of them after the episode's end."""

    def __init__(self, num_envs: int = 1, *, autoreset: bool = True, horizon: int = 20) -> None:
        super().__init__(num_envs, tiny_queues_problem(horizon), autoreset=autoreset)
        self._tasks = np.zeros((num_envs, horizon + 1), dtype=np.int64)
        self._now = 0
        self._free_at = np.zeros((num_envs, 2), dtype=np.int64)
        self._under_way: list[tuple[int, int, int, float, bool, int]] = []
        self.sent: dict[int, tuple[int, int]] = {}

    def _begin(self, indices: Ints) -> None:
        for i in indices:
            self._tasks[i] = self.rngs[i].integers(len(TASKS), size=self._tasks.shape[1])
            self._free_at[i] = self._now

    def _task(self) -> NDArray[np.int64]:
        return self._tasks[np.arange(self.num_envs), self.elapsed]

    def _observe(self) -> NDArray[Any]:
        backlog = np.maximum(self._free_at - self._now, 0)
        waiting = -(-backlog // SERVICE)
        return np.column_stack([np.minimum(waiting, LONGEST), self._task()])

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        for env, (action, task, number) in enumerate(
            zip(actions, self._task(), decision_ids, strict=True)
        ):
            finish = max(self._now, int(self._free_at[env, action])) + int(SERVICE[action])
            self._free_at[env, action] = finish
            met = finish - self._now <= LATEST
            reward = float(REWARD[task, action]) if met else 0.0
            self._under_way.append((finish, env, int(number), reward, met, finish - self._now))
            self.sent[int(number)] = (int(task), int(action))
        self._now += 1
        done = sorted(entry for entry in self._under_way if entry[0] <= self._now)
        self._under_way = [entry for entry in self._under_way if entry[0] > self._now]
        rewards = np.zeros(self.num_envs)
        for _, env, _, reward, *_ in done:
            rewards[env] += reward
        outcomes = Outcomes(
            np.array([e[2] for e in done], dtype=np.int64),
            np.array([e[3] for e in done]),
            np.array([e[4] for e in done], dtype=np.bool_),
            np.zeros(len(done), dtype=np.bool_),
            {"steps": np.array([float(e[5]) for e in done])},
        )
        return StepResult(rewards, outcomes, np.zeros(self.num_envs, dtype=np.bool_))


def mean_reward(policy: Policy, env: BatchedEnv, steps: int = 60, seed: int = 90) -> float:
    """Return the mean reward of the decisions that finished, without exploration."""
    rollout = Rollout(policy, env, explore=False)
    rollout.reset(seed=seed)
    outcomes = [o for _ in range(steps) for o in rollout.step()[1]]
    return float(np.mean([o.reward for o in outcomes]))


def write_row_templates(folder: Path, header: str = "Server speed by queue.") -> Path:
    """Write the templates of the tiny problem below ``folder``."""
    texts = {"goal": "Send tasks to quick or slow.", "definition": "A", "rules": "B", "row": header}
    (folder / "tiny-queues").mkdir(parents=True)
    for part, text in texts.items():
        (folder / "tiny-queues" / f"{part}.j2").write_text(text)
    return folder


def read_row(prompt: str) -> dict[str, float]:
    """Find the cell in question in the whole row above it; say fast where it is not."""
    *_, row, cut = prompt.splitlines()
    query = cut.rsplit(":", 1)[-1].rsplit(",", 1)[-1].strip()
    cells = dict(cell.strip().rsplit(" ", 1) for cell in row.rsplit(":", 1)[-1].split(",") if cell)
    word = cells.get(query, "fast") if row.split(":")[0] == cut.split(":")[0] else "fast"
    return {w: 0.9 if w == word else 0.1 for w in ("late", "fast")}


class RowModel(FunctionLLM):
    """Reads rows as :func:`read_row` does."""

    def __init__(self) -> None:
        super().__init__(read_row)
