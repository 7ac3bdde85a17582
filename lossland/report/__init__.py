"""One HTML file of a sweep: its map, and every run's curves and story. It opens without a network."""

from lossland.report.page import write_report

__all__ = ["write_report"]
