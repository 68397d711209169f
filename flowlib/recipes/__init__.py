"""Recipes: runnable modules that train what the book ships or measures, `python -m flowlib.recipes.NAME --help`."""
