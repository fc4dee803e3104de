"""How networks are trained: recipes, Lightning, tasks."""
