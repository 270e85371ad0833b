"""Plots of runs side by side: metrics, labels, figure. Imports no torch."""
