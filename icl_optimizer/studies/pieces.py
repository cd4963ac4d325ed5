"""Pieces of a study, each a file that is kept as soon as it is finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from icl_optimizer.rollout import progress


def finish_pieces(
    text: str, pieces: Mapping[Path, Callable[[], str]], *, jobs: int = 1, progress_bar: bool = True
) -> None:
    """Write every file that is not there yet; a kill in mid-write leaves no half file.

    Args:
        text: What the progress bar says.
        pieces: By path, what returns the file's text; functions that can be pickled where there
            are several jobs.
        jobs: Processes.
        progress_bar: Whether to draw one.
    """
    from joblib import Parallel, delayed

    missing = [(path, make) for path, make in pieces.items() if not path.exists()]
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")
    with progress(text, len(missing), shown=progress_bar) as advance:
        for path, content in parallel(delayed(_made)(path, make) for path, make in missing):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            partial.write_text(content, encoding="utf-8")
            os.replace(partial, path)
            advance(1)


def _made(path: Path, make: Callable[[], str]) -> tuple[Path, str]:
    return path, make()
