"""Plots of a report, as PNG files. Home of matplotlib."""
