"""Where units run: in this process, in several, or on a Ray cluster.

Each engine is given units and yields them as they finish, in any order. What a unit measures does
not depend on the engine.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from icl_optimizer.comparison.unit import Unit, UnitResult
from icl_optimizer.comparison.work import (
    Bench,
    Work,
    check_work,
    limited_threads,
    run_work,
    to_check,
)
from icl_optimizer.errors import ConfigurationError, ModelError, ReplayError, WorkerError
from icl_optimizer.llm.base import LanguageModel

ATTEMPTS = 3
"""How often a unit is started whose worker is lost."""
WATCH_S = 0.5
"""How often a worker process looks whether it is still needed."""

Outcome = tuple[UnitResult, Exception | None]
Runner = Callable[[Work], Outcome]
R = TypeVar("R")


@dataclass(frozen=True)
class Finished:
    """A unit that has ended.

    Attributes:
        index: Its place among the units that were given.
        result: What it measured; what it had measured by then where it was stopped.
        error: What stopped it; None for a finished one.
    """

    index: int
    result: UnitResult
    error: BaseException | None = None


class Engine(Protocol):
    """Runs units somewhere."""

    def run(self, works: Sequence[Work]) -> Iterator[Finished]:
        """Yield the units as they end."""
        ...


def longest_first(works: Sequence[Work]) -> list[tuple[int, Work]]:
    """Return the units with their places so that several workers end at about the same time.

    Those that ask a language model take longest; they stay together, so that it stays loaded. Of
    the others those go first that learn from most interactions.
    """

    def place(item: tuple[int, Work]) -> tuple[bool, int]:
        work = item[1]
        return (False, 0) if work.needs_llm else (True, -work.budget)

    return sorted(enumerate(works), key=place)


class InProcess:
    """One unit after the other, here. The first that is stopped ends all, once it was yielded.

    Args:
        advance: Called with the number of decisions while units learn.
        model: A loaded language model for all units; None: each unit's own.
    """

    def __init__(
        self, advance: Callable[[int], None] = lambda _: None, model: LanguageModel | None = None
    ) -> None:
        """Load nothing yet."""
        self._advance = advance
        self._bench = Bench(model)

    def run(self, works: Sequence[Work]) -> Iterator[Finished]:
        """Yield the units in their order."""
        for work in works:
            with limited_threads(work.config.threads):
                self._bench.check(work)
        for index, work in enumerate(works):
            yield from self._one(index, work)

    def _one(self, index: int, work: Work) -> Iterator[Finished]:
        unit: Unit | None = None
        try:
            with limited_threads(work.config.threads):
                self._bench.check(work)
                unit = self._bench.unit(work)
                result = unit.run(self._advance)
        except (ModelError, ReplayError) as error:
            # as in processes of their own: the other units go on
            if unit is None:
                raise
            yield Finished(index, unit.result, error)
            return
        except BaseException as error:
            # whatever stopped it, an interrupt included: what it had measured is kept
            if unit is not None:
                yield Finished(index, unit.result, error)
            raise
        yield Finished(index, result)


class Processes:
    """Several processes on this machine, each with a language model of its own.

    A process that is killed takes one unit with it, which a new process runs again.

    Args:
        jobs: Processes.
        runner: What they do with a unit.
    """

    def __init__(self, jobs: int, runner: Runner = run_work) -> None:
        """Start nothing yet."""
        self._jobs = jobs
        self._runner = runner

    def run(self, works: Sequence[Work]) -> Iterator[Finished]:
        """Yield the units as they end.

        Raises:
            WorkerError: A unit's process was lost :data:`ATTEMPTS` times.
        """
        waiting = iter(longest_first(works))
        running: dict[Future[Outcome], tuple[int, Work, _Worker]] = {}
        workers = [_Worker(work.config.threads) for work in works[: self._jobs]]
        try:
            for work in to_check(works):
                workers[0].checked(work)
            for worker, (index, work) in zip(workers, waiting, strict=False):
                running[worker.start(self._runner, work)] = index, work, worker
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index, work, worker = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        running[worker.again(self._runner, work)] = index, work, worker
                        continue
                    result, error = future.result()
                    following = next(waiting, None)
                    if following is not None:
                        # before what ended is written: nobody waits for the disk
                        future = worker.start(self._runner, following[1])
                        running[future] = (*following, worker)
                    yield Finished(index, result, error)
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """One process at a time, and a new one where it was lost."""

    def __init__(self, threads: int) -> None:
        self._threads = str(threads)
        self._lost = 0
        self._pool = self._new()

    def _new(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        # threads of processes that share the cores sleep while they wait
        env = {"OMP_NUM_THREADS": self._threads, "OMP_WAIT_POLICY": "PASSIVE"}
        return ProcessPoolExecutor(
            max_workers=1, env=env, initializer=begin_worker, initargs=(os.getpid(),)
        )

    def checked(self, work: Work) -> None:
        """Wait until the model of ``work`` was asked what it can do."""
        future = self.start(check_work, work)
        while isinstance(future.exception(), BrokenProcessPool):
            future = self.again(check_work, work)
        future.result()

    def start(self, runner: Callable[[Work], R], work: Work) -> Future[R]:
        self._lost = 0
        future: Future[R] = self._pool.submit(runner, work)
        return future

    def again(self, runner: Callable[[Work], R], work: Work) -> Future[R]:
        self._lost += 1
        if self._lost == ATTEMPTS:
            raise lost(work)
        self._pool.shutdown(kill_workers=True)
        self._pool = self._new()
        future: Future[R] = self._pool.submit(runner, work)
        return future

    def stop(self) -> None:
        self._pool.shutdown(kill_workers=True)


def begin_worker(parent: int) -> None:
    """Prepare a worker process of ``parent``."""
    from joblib.externals.loky import process_executor

    # it ends a process that has grown, and warns of a leak; ours have loaded a language model
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    end_with(parent)


def end_with(parent: int) -> None:
    """End this process when ``parent`` has ended, even where that one was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def lost(work: Work) -> WorkerError:
    """Return the error for a unit whose worker never comes back."""
    return WorkerError(
        f"{work}: its worker process was lost {ATTEMPTS} times, as happens where memory runs out; "
        "finished units are kept, and fewer --jobs need less memory."
    )


class RayCluster:
    """The cores of a Ray cluster: an existing one, else one on this machine that ends with it.

    Args:
        address: Of an existing cluster, for example ``10.0.0.1:6379``; None starts one here.
        jobs: Units at a time; None: as many as the cluster has cores for.
        runner: What workers do with a unit.
    """

    def __init__(
        self, address: str | None = None, jobs: int | None = None, runner: Runner = run_work
    ) -> None:
        """Connect to nothing yet."""
        self._address = address
        self._jobs = jobs
        self._runner = runner

    def run(self, works: Sequence[Work]) -> Iterator[Finished]:
        """Yield the units as they end.

        Raises:
            MissingDependencyError: Ray is not installed.
            ConfigurationError: No machine of the cluster has as many cores as a unit has threads.
            WorkerError: A unit's worker was lost :data:`ATTEMPTS` times.
        """
        from icl_optimizer.comparison.ray_session import ray_session

        if not works:
            return
        threads = max(work.config.threads for work in works)
        with ray_session(
            self._address, None if self._jobs is None else self._jobs * threads
        ) as ray:
            _check_cores(ray, threads)
            call = ray.remote(max_retries=ATTEMPTS - 1)(_there)

            def sent(runner: Callable[[Work], object], work: Work) -> Any:
                # each unit has as many cores as it has threads
                sized = call.options(num_cpus=work.config.threads, name=str(work))
                return sized.remote(runner, work, os.getcwd())

            for work in to_check(works):
                _fetched(ray, sent(check_work, work), work)
            running: dict[Any, tuple[int, Work]] = {}
            waiting = iter(longest_first(works))
            # what waits at the cluster is there at once when a core is free
            room = self._jobs or 2 * int(ray.cluster_resources().get("CPU", 1))

            def fill() -> None:
                for index, work in _first(waiting, room - len(running)):
                    running[sent(self._runner, work)] = index, work

            fill()
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                index, work = running.pop(done)
                outcome: Outcome = _fetched(ray, done, work)
                # before what ended is written: nobody waits for the disk
                fill()
                yield Finished(index, *outcome)


def _fetched(ray: Any, done: Any, work: Work) -> Any:
    """Return what a unit on the cluster has ended with; raise where the cluster lost it."""
    try:
        return ray.get(done)
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    ) as failure:
        raise lost(work) from failure
    except ray.exceptions.RayTaskError as failure:
        raise failure.cause from failure
    except ray.exceptions.RayError as failure:
        raise WorkerError(
            f"the Ray cluster was lost ({type(failure).__name__}); what was finished "
            "is kept, and --resume goes on with it."
        ) from failure


def _check_cores(ray: Any, threads: int) -> None:
    """Raise where a unit would wait forever for a machine with as many cores."""
    cores = max(int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"])
    if threads > cores:
        raise ConfigurationError(
            f"threads is {threads}; allowed: 1 to {cores}, the cores of the largest machine."
        )


def _there(runner: Callable[[Work], R], work: Work, folder: str) -> R:
    """Run or check a unit in a worker of a cluster; in the driver's folder, if it has it."""
    if os.path.isdir(folder):
        os.chdir(folder)
    return runner(work)


def _first(items: Iterator[tuple[int, Work]], count: int) -> Iterator[tuple[int, Work]]:
    for _ in range(count):
        item = next(items, None)
        if item is None:
            return
        yield item
