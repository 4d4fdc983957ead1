"""Common to all operators: definition, dispatch, checks, plans and launches."""
