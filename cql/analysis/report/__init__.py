"""The report: one HTML page that holds a whole run."""

from cql.analysis.report.page import render, write_report

__all__ = ["render", "write_report"]
