"""Labelled data: tables, layouts, splits, cases, and examples through the cache."""
