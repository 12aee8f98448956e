"""The embedded backbone: its weights, model card and licence notices."""
