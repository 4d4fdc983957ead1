"""What a run found, as numbers for machines (`report.json`) and as tables for people."""

from sieve.report.build import build_report
from sieve.report.masks import mask_report
from sieve.report.read import read_report
from sieve.report.show import chance_line, show_report

__all__ = ["build_report", "chance_line", "mask_report", "read_report", "show_report"]
