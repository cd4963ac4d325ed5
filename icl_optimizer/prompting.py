"""Prompts from Jinja2 templates: task description, examples, query."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Example
from icl_optimizer.problem import Context, Problem

PARTS = ("goal", "definition", "rules")


@dataclass(frozen=True)
class ShownExample:
    """An example as a template sees it."""

    description: str
    words: str
    label: str
    reward: float
    evaluation: str


class PromptBuilder:
    """Renders the meta-prompt of eqs. (5)-(9) of Zhou et al.: description, examples, query.

    Templates are looked up in ``folder`` first, then among those that ship. They run in Jinja2's
    sandbox, and an undefined variable is an error.

    Args:
        problem: Labels and keywords; its name is the folder of ``goal``, ``definition``, ``rules``.
        layout: Name of the template in ``layouts/`` that puts the parts together.
        folder: A user's folder with templates that replace shipped ones of the same path.
    """

    def __init__(
        self, problem: Problem, layout: str = "completion", folder: str | Path | None = None
    ) -> None:
        """Find and check the templates."""
        self.problem = problem
        self.layout = layout
        self._environment = _environment(folder)
        self._check_labels()

    @cached_property
    def parts(self) -> dict[str, str]:
        """Goal, definition and rules as rendered text."""
        return {part: self._render(f"{self.problem.name}/{part}.j2") for part in PARTS}

    @cached_property
    def shows_rewards(self) -> bool:
        """Whether the layout shows more of an example than its context and decision."""
        name = f"layouts/{self.layout}.j2"
        assert self._environment.loader is not None, "the environment was built with one"
        source, *_ = self._environment.loader.get_source(self._environment, name)
        return "reward" in source or "evaluation" in source

    def describe(self, context: Context) -> str:
        """Return a context as one line of text."""
        text = ", ".join(f"{name.lower()}: {word}" for name, word in context.items())
        return text[:1].upper() + text[1:]

    def words(self, context: Context) -> str:
        """Return the words of a context without its keywords."""
        return ", ".join(context.words)

    def show(self, example: Example) -> ShownExample:
        """Return an example as templates see it."""
        return ShownExample(
            self.describe(example.context),
            self.words(example.context),
            self.problem.labels[example.action],
            round(example.reward, 2),
            "good" if example.good else "bad",
        )

    def render(self, examples: Sequence[Example], context: Context) -> str:
        """Return the prompt for ``context``; the model continues it with a label."""
        return self._render(
            f"layouts/{self.layout}.j2",
            **self.parts,
            examples=[self.show(e) for e in examples],
            query=self.words(context),
            query_description=self.describe(context),
        ).rstrip()

    def render_list(self, examples: Sequence[Example], action: int) -> str:
        """Return the prompt that lists the examples with one decision; a query continues it."""
        return self._render(
            "layouts/channel.j2",
            **self.parts,
            label=self.problem.labels[action],
            examples=[self.show(e) for e in examples if e.action == action],
        ).rstrip()

    def _render(self, name: str, **values: Any) -> str:
        keywords = [c.name for c in self.problem.columns]
        try:
            template = self._environment.get_template(name)
            text = template.render(labels=self.problem.labels, keywords=keywords, **values)
        except (TemplateError, ArithmeticError, TypeError, ValueError) as error:
            raise ConfigurationError(f"prompt template '{name}': {error}") from error
        return text.strip()

    def _check_labels(self) -> None:
        text = " ".join(self.parts.values())
        for label in self.problem.labels:
            if not re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text):
                raise ConfigurationError(
                    f"the templates in '{self.problem.name}/' do not name the label '{label}'; "
                    f"allowed: goal, definition or rules that name all of "
                    f"{', '.join(self.problem.labels)}."
                )


def _environment(folder: str | Path | None) -> SandboxedEnvironment:
    """Return the sandboxed template environment, the user's folder first."""
    loaders: list[BaseLoader] = []
    if folder is not None:
        if not Path(folder).is_dir():
            raise ConfigurationError(f"prompts folder '{folder}' does not exist.")
        loaders.append(FileSystemLoader(folder))
    loaders.append(FileSystemLoader(str(files("icl_optimizer.prompts"))))
    return SandboxedEnvironment(
        loader=ChoiceLoader(loaders),
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
        autoescape=False,
    )
