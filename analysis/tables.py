"""Every table of a report, each made once, when it is first asked for: ``Tables.of(results)``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import polars as pl

from analysis import coverage, recommend
from analysis.generation import speed
from analysis.harness import tables as task_tables
from analysis.load import Results
from analysis.perplexity import curve_shape
from analysis.perplexity import tables as perplexity_tables
from analysis.retrieval import tables as retrieval_tables
from analysis.statistics import pairs


@dataclass(frozen=True)
class Tables:
    """What the page, its charts, the audit and an export are
    made of; reading may raise as ``Results.reading`` says."""

    results: Results

    @classmethod
    def of(cls, results: Results) -> Tables:
        """The tables of some runs. No row is read yet."""
        return cls(results)

    @cached_property
    def windows(self) -> pl.DataFrame:
        """Rows of perplexity beside the dense twin's of the same window (``pairs.with_dense``)."""
        return pairs.with_dense(self.results.rows("perplexity"))

    @cached_property
    def perplexity(self) -> pl.DataFrame:
        """A row per pooled cell with its verdict (``perplexity_tables.summary``).

        Cells that failed have none.
        """
        return perplexity_tables.summary(self.windows)

    @cached_property
    def cells(self) -> pl.DataFrame:
        """``perplexity`` and, with the verdict FAILED, the cells that failed."""
        return perplexity_tables.with_failures(self.perplexity, self.failures)

    @cached_property
    def curves(self) -> pl.DataFrame:
        """Minimum and phases of each curve of perplexity over keep_ratio (``curve_shape.shapes``)."""
        return curve_shape.shapes(self.windows, self.perplexity)

    @cached_property
    def front(self) -> pl.DataFrame:
        """The cells that no other beats in both budget and perplexity (``recommend.front``)."""
        return recommend.front(self.perplexity)

    def recommended(self, tolerance: float = recommend.MAX_PPL_INCREASE) -> pl.DataFrame:
        """A row of advice per model and dataset (``recommend.recommended``)."""
        return recommend.recommended(self.windows, self.perplexity, self.retrieval, tolerance)

    @cached_property
    def timings(self) -> pl.LazyFrame:
        """Rows of generation."""
        return self.results.rows("generation")

    @cached_property
    def checks(self) -> pl.DataFrame:
        """Whether what took turns can be compared (``speed.checks``)."""
        return speed.checks(self.timings)

    @cached_property
    def generation(self) -> pl.DataFrame:
        """Times and bytes of each cell beside the dense twin's (``speed.generation``)."""
        return speed.generation(self.timings, self.checks)

    @cached_property
    def answers(self) -> pl.LazyFrame:
        """Rows of retrieval."""
        return self.results.rows("retrieval")

    @cached_property
    def retrieval(self) -> pl.DataFrame:
        """Accuracy of each cell and set of questions (``retrieval_tables.retrieval``)."""
        return retrieval_tables.retrieval(self.answers)

    @cached_property
    def harness(self) -> pl.DataFrame:
        """Metrics of tasks of lm-evaluation-harness (``task_tables.tasks``)."""
        return task_tables.tasks(self.results.rows("tasks"))

    @cached_property
    def failures(self) -> pl.DataFrame:
        """What failed and why (``coverage.failures``)."""
        return coverage.failures(self.results)

    @cached_property
    def coverage(self) -> pl.DataFrame:
        """Planned, done, failed and missing cells (``coverage.coverage``)."""
        return coverage.coverage(self.results)

    @cached_property
    def excluded(self) -> pl.DataFrame:
        """How many cells enter no aggregate, and why (``perplexity_tables.excluded``)."""
        return perplexity_tables.excluded(self.cells, self.generation, self.retrieval, self.harness)
