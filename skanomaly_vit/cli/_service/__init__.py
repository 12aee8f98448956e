"""A model behind HTTP, and over a folder that fills: nothing here needs torch, unless the model."""
