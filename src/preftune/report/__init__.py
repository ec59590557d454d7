"""One self-contained HTML page from run folders: numbers, figures, samples side by side."""

from preftune.report.page import PAGES, write_report

__all__ = ["PAGES", "write_report"]
