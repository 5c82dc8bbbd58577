"""Comparing learners: arms × seeds, statistics, a verdict, a report."""
