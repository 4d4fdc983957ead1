"""The main job from a recipe to a pruned folder, its report, and going on with an interrupted run."""
