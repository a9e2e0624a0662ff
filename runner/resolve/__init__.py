"""From a recipe to what it names: models, methods, numbers at every place."""
