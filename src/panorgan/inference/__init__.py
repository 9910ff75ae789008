"""A trained model on a CT: sliding window, export; what a model or a recipe is."""
