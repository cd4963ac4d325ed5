"""Prompts from Jinja2 templates: task description, examples, query."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Example
from icl_optimizer.llm.base import Message
from icl_optimizer.problem import Context, Problem
from icl_optimizer.shown import ShownExample, show, signature

PARTS = ("goal", "definition", "rules")


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
        self._folder = folder
        self._environment = _environment(folder)
        self._check_labels()

    @cached_property
    def parts(self) -> dict[str, str]:
        """Goal, definition and rules as rendered text."""
        return {part: self._render(f"{self.problem.name}/{part}.j2") for part in PARTS}

    def renamed(self, labels: Sequence[str]) -> PromptBuilder:
        """Return a builder of the same prompts in which the decisions bear these names."""
        problem = replace(self.problem, labels=tuple(labels))
        return PromptBuilder(problem, self.layout, self._folder)

    @cached_property
    def shows_tried(self) -> bool:
        """Whether the layout shows what was seen of every decision tried in a context."""
        return "tried" in self._source or "worst" in self._source

    def signature(self, examples: Sequence[Example]) -> Hashable:
        """Return what of ``examples`` the prompts depend on: that part of a cache's key."""
        return signature(examples, self._source)

    @cached_property
    def _source(self) -> str:
        assert self._environment.loader is not None, "the environment was built with one"
        name = f"layouts/{self.layout}.j2"
        try:
            source, *_ = self._environment.loader.get_source(self._environment, name)
        except TemplateError as error:
            raise ConfigurationError(f"prompt template '{name}': {error}") from error
        return source

    def describe(self, context: Context) -> str:
        """Return a context as one line of text."""
        text = ", ".join(f"{name.lower()}: {word}" for name, word in context.items())
        return text[:1].upper() + text[1:]

    def words(self, context: Context) -> str:
        """Return the words of a context without its keywords."""
        return ", ".join(context.words)

    def show(self, example: Example) -> ShownExample:
        """Return an example as templates see it."""
        labels = self.problem.labels
        return show(example, self.describe(example.context), self.words(example.context), labels)

    def render(self, examples: Sequence[Example], context: Context) -> str:
        """Return the prompt for ``context``; the model continues it with a label."""
        shown = [self.show(e) for e in examples]
        return self._render(
            f"layouts/{self.layout}.j2",
            **self.parts,
            examples=shown,
            query=self.words(context),
            query_description=self.describe(context),
            query_tried=next((e.tried for e in shown if e.words == self.words(context)), ()),
        ).rstrip()

    def render_list(self, examples: Sequence[Example], action: int) -> str:
        """Return the prompt that lists the examples with one decision; a query continues it."""
        return self._render(
            "layouts/channel.j2",
            **self.parts,
            label=self.problem.labels[action],
            examples=[self.show(e) for e in examples if e.action == action],
        ).rstrip()

    def render_row(
        self, action: int, rows: Sequence[Sequence[str]], cut: Sequence[str], context: Context
    ) -> str:
        """Return the prompt about the outcome of one decision in ``context``.

        Args:
            action: Index of the decision.
            rows: Whole rows of what was seen, each cell as words and level.
            cut: The last row, up to the cell that the model continues.
            context: The situation of that cell.
        """
        return self._render(
            "layouts/predict.j2",
            **self.parts,
            label=self.problem.labels[action],
            context=[name.lower() for name in context],
            rows=rows,
            cut=cut,
            query=self.words(context),
        ).rstrip()

    def render_cells(
        self,
        action: int,
        shared: Sequence[str],
        *,
        rows: Sequence[Sequence[str]],
        cut: Sequence[str],
        query: str,
    ) -> str:
        """Return the prompt about one cell of a decision's row of outcomes.

        Args:
            action: Index of the decision.
            shared: Words that all decisions share.
            rows: Whole rows, each cell as own words and outcome.
            cut: The last row, up to the cell that the model continues.
            query: Own words of that cell.
        """
        return self._render(
            "layouts/row.j2",
            header=self._header,
            subject=" ".join((self.problem.labels[action], *shared)),
            rows=rows,
            cut=cut,
            query=query,
        ).rstrip()

    def render_alike(self, what: str, known: str) -> str:
        """Return the prompt about what is like something known; what is new continues it.

        Args:
            what: Kind of thing, with a template ``<problem>/alike_<what>.j2``.
            known: Description of the known one.
        """
        return self._render(f"{self.problem.name}/alike_{what}.j2", known=known)

    @cached_property
    def _header(self) -> str:
        return self._render(f"{self.problem.name}/row.j2")

    def turns(self, examples: Sequence[Example], context: Context) -> list[Message]:
        """Return the prompt as a conversation: the task, a question and a reply per example."""
        task = {"role": "system", "content": "\n".join(self.parts.values())}
        question = {"role": "user", "content": self.words(context)}
        told = [
            message
            for example in map(self.show, examples)
            for message in (
                {"role": "user", "content": example.words},
                {"role": "assistant", "content": example.label},
            )
        ]
        return [task, *told, question]

    def _render(self, name: str, **values: Any) -> str:
        keywords = list(self.problem.keywords)
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
