"""What this package changes in vLLM; ``patch_list.py`` lists it."""
