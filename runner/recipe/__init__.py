"""Recipes: their text, their structure, their canonical form and their locks."""
